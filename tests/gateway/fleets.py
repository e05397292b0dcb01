"""Fleets of services that are open already, for tests of what is in front of them. Knows no test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.instance import Service
from ortserve.gateway.fleet.member import Tools
from ortserve.gateway.fleet.memory import Allotment
from ortserve.gateway.fleet.opening import Opened
from ortserve.gateway.fleet.prepared import Prepared
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.runtime.workers.restarts import Restarts

MEMORY = 2**36


class GivenOpener:
    """Opens what has been given to it, by served name."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = {service.name: service for service in services}

    def find(self, spec: ModelSpec) -> Prepared:
        service = self._services[spec.source or ""]
        return Prepared(spec, Path(), service.manifest, service.created)

    def prepare(self, spec: ModelSpec) -> Prepared:
        return self.find(spec)

    def open(self, prepared: Prepared, allotment: Allotment) -> Opened:
        service = self._services[prepared.spec.source or ""]
        return Opened(service.driver, lambda: service)


async def fleet_of(*services: Service) -> Fleet:
    """Call it in the loop that serves, and close the fleet in the end."""
    specs = [ModelSpec(service.name, name=service.name) for service in services]
    fleet = Fleet(specs, Tools(GivenOpener(services), Restarts(delays_s=())), memory=MEMORY)
    await fleet.start()
    return fleet
