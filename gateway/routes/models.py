"""GET /v1/models and GET /v1/models/{id}. Knows no engine state."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.catalog import Catalog
from ortserve.gateway.encoder_service import EncoderService
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.routes.bodies import json_response
from ortserve.gateway.schema.replies import EncoderReply, GenerationValues, ModelList, ModelReply
from ortserve.gateway.service import ModelService


@dataclass(frozen=True, slots=True)
class ModelsRoute:
    """The endpoints of all models."""

    catalog: Catalog

    async def index(self, request: Request) -> Response:
        """All models that the caller may use: clients discover names here."""
        exchange = exchange_of(request.scope)
        return json_response(
            ModelList(
                [
                    self._reply(service)
                    for service in self.catalog.services
                    if exchange.grant.may_use(service.name, exchange.directory)
                ]
            )
        )

    async def one(self, request: Request) -> Response:
        """One model by id, which may contain slashes."""
        exchange_of(request.scope).check_model(request.path_params["id"])
        return json_response(self._reply(self.catalog.service(request.path_params["id"])))

    def _reply(self, service: ModelService | EncoderService) -> ModelReply | EncoderReply:
        verified = self.catalog.directory.is_verified(service.name)
        if isinstance(service, EncoderService):
            manifest = service.manifest
            sizes = sorted({*manifest.dimensions, manifest.num_outputs})
            return EncoderReply(
                id=service.name,
                created=service.created,
                owned_by="ortserve",
                verified=verified,
                max_model_len=service.max_length,
                context_length=service.max_length,
                task=manifest.task,
                dimensions=sizes if manifest.task == "embeddings" else [],
                prompt_names=sorted(manifest.prompts),
            )
        defaults = service.defaults
        return ModelReply(
            id=service.name,
            created=service.created,
            owned_by="ortserve",
            verified=verified,
            max_model_len=service.max_context,
            context_length=service.max_context,
            generation_defaults=GenerationValues(
                defaults.temperature, defaults.top_p, defaults.top_k, defaults.repetition_penalty
            ),
        )
