"""GET /v1/models and GET /v1/models/{id}. Knows no engine state."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.routes.bodies import json_response
from ortserve.gateway.schema.replies import GenerationValues, ModelList, ModelReply
from ortserve.gateway.service import ModelService


@dataclass(frozen=True, slots=True)
class ModelsRoute:
    """The endpoints of one model."""

    service: ModelService

    async def index(self, _: Request) -> Response:
        """All models: clients discover names here."""
        return json_response(ModelList([self._reply()]))

    async def one(self, request: Request) -> Response:
        """One model by id, which may contain slashes."""
        self.service.check_model(request.path_params["id"])
        return json_response(self._reply())

    def _reply(self) -> ModelReply:
        service = self.service
        defaults = service.defaults
        return ModelReply(
            id=service.name,
            created=service.created,
            owned_by="ortserve",
            max_model_len=service.max_context,
            context_length=service.max_context,
            generation_defaults=GenerationValues(
                defaults.temperature, defaults.top_p, defaults.top_k, defaults.repetition_penalty
            ),
        )
