"""Checks of what a configuration would serve: each model's folder, and whether they fit into memory. Loads nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from ortserve.gateway.doctor.findings import Finding, broken, fine, note
from ortserve.gateway.fleet.memory import allot, resident_weights
from ortserve.gateway.fleet.opening import find_prepared
from ortserve.gateway.fleet.options import model_specs
from ortserve.gateway.fleet.prepared import Prepared
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.options.settings import Settings, add_server_options, resolve
from ortserve.runtime.errors import MemoryBudgetError, ModelError
from ortserve.runtime.host.machine import MemoryFacts
from ortserve.runtime.sizes import shown_bytes


def settings_of(config: Path) -> Settings:
    """What `ortserve serve --config FILE` would be configured by. Raises `ConfigurationError`."""
    parser = argparse.ArgumentParser()
    add_server_options(parser)
    return resolve(parser.parse_args(["--config", str(config)])).settings


def check_models(settings: Settings, memory: MemoryFacts) -> list[Finding]:
    """A finding for each model, and one for all of them together. Raises `ConfigurationError`."""
    total = settings.fleet.model_memory or memory.available
    findings: list[Finding] = []
    known: list[Prepared] = []
    try:
        specs = model_specs(settings)
    except ModelError as error:
        return [broken("models", str(error), "name an exported folder, or export it again")]
    for spec in specs:
        try:
            prepared = find_prepared(spec)
        except ModelError as error:
            findings.append(broken(_name(spec), str(error), "ortserve verify says more; or leave the model out"))
            continue
        if prepared is None:
            remedy = "ortserve export it beforehand, to know how long that takes and what it needs"
            findings.append(note(_name(spec), "no exported folder: it is exported when the server starts", remedy))
        else:
            known.append(prepared)
    findings += [_check_one(one, [other for other in known if other is not one], total) for one in known]
    return [*findings, _check_all(known, total, is_set=settings.fleet.model_memory is not None)]


def _check_one(prepared: Prepared, others: list[Prepared], total: int) -> Finding:
    name, what = _name(prepared.spec, prepared), "generates" if prepared.generates else "encodes"
    try:
        allotment = allot(total, prepared, others)
    except MemoryBudgetError as error:
        return broken(name, str(error), "raise --model-memory, export a smaller precision, or lower --kv-memory")
    weights = shown_bytes(resident_weights(prepared))
    detail = f"{what}, {prepared.max_length} tokens; {weights} of weights, {shown_bytes(allotment.num_bytes)}"
    detail += " with caches"
    if not prepared.verified:
        return note(name, f"{detail}; unverified", "ortserve verify measures it again")
    return fine(name, detail)


def _check_all(known: list[Prepared], total: int, *, is_set: bool) -> Finding:
    """Those that are loaded at the start must fit together; others take turns."""
    first = [one for one in known if one.spec.preload]
    detail = f"{shown_bytes(total)} ({'--model-memory' if is_set else 'what is free now'})"
    needed = 0
    for one in first:
        try:
            needed += allot(total, one, [other for other in known if other is not one]).num_bytes
        except MemoryBudgetError:  # said already, of that model
            needed += resident_weights(one)
    detail += f", of which the {len(first)} that are loaded at the start take {shown_bytes(needed)}"
    if needed > total:
        remedy = "load_on_demand = true, a smaller --kv-memory, or fewer models"
        return broken("memory for models", detail, remedy)
    if len(first) < len(known):
        detail += f"; {len(known) - len(first)} are loaded when they are asked for, and may make others give way"
    return fine("memory for models", detail)


def _name(spec: ModelSpec, prepared: Prepared | None = None) -> str:
    return f"model {spec.name or spec.provisional_name if prepared is None else prepared.name}"
