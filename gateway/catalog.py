"""The models of one server: which of them a call means. Knows no route and no wire format."""

from __future__ import annotations

from collections.abc import Sequence

from ortserve.gateway.directory import Directory, Task
from ortserve.gateway.encoder_service import EncoderService
from ortserve.gateway.service import ModelService


class Catalog:
    """At most one model that generates, and any number of encoders."""

    def __init__(self, decoder: ModelService | None, encoders: Sequence[EncoderService] = ()) -> None:
        """All of them were made with the same directory."""
        self.decoder = decoder
        self.encoders = tuple(encoders)
        assert self.services, "nothing to serve"
        self.directory: Directory = self.services[0].directory

    @property
    def services(self) -> tuple[ModelService | EncoderService, ...]:
        """All models, the one that generates first."""
        return (*([self.decoder] if self.decoder else []), *self.encoders)

    @property
    def healthy(self) -> bool:
        """Every model accepts requests."""
        return all(service.driver.healthy for service in self.services)

    @property
    def has_failed(self) -> bool:
        """Some engine has died and will not come back."""
        return any(service.driver.has_failed for service in self.services)

    def service(self, name: str) -> ModelService | EncoderService:
        """The model of that name, whatever it does. Raises `ApiError` (404)."""
        return self._named(self.directory.find(name, "generate", "embeddings", "rerank").names[0])

    def encoder(self, name: str, *wanted: Task) -> EncoderService:
        """The encoder of that name. Raises `ApiError`: 404 for an unknown name, 400 when it does something else."""
        service = self._named(self.directory.find(name, *wanted).names[0])
        assert isinstance(service, EncoderService)
        return service

    def close(self) -> None:
        """Drop what waits in the worker pools."""
        for service in self.services:
            service.pool.close()

    def _named(self, name: str) -> ModelService | EncoderService:
        return next(service for service in self.services if service.name == name)
