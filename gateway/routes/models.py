"""GET /v1/models and GET /v1/models/{id}. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.models import EncoderReply, GenerationValues, ModelList, ModelReply
from ortserve.gateway.encoders.service import EncoderService
from ortserve.gateway.errors import ApiError, unavailable
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.prepared import Prepared
from ortserve.gateway.fleet.state import ModelState
from ortserve.gateway.routes.bodies import json_response
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class ModelsRoute:
    """The endpoints of all models."""

    fleet: Fleet

    async def index(self, request: Request) -> Response:
        """All models that the caller may use, loaded or not: clients discover names here."""
        exchange = exchange_of(request.scope)
        return json_response(
            ModelList(
                [
                    _reply(state, state.prepared)
                    for state in self.fleet.states()
                    if state.prepared is not None and exchange.grant.may_use(state.name, exchange.directory)
                ]
            )
        )

    async def one(self, request: Request) -> Response:
        """One model by id, which may contain slashes."""
        exchange_of(request.scope).check_model(request.path_params["id"])
        state = self.fleet.state(request.path_params["id"])
        if state.prepared is None:
            raise ApiError(unavailable(f"The model `{state.name}` is {state.phase}."))
        return json_response(_reply(state, state.prepared))


def _reply(state: ModelState, prepared: Prepared) -> ModelReply | EncoderReply:
    service, manifest = state.service, prepared.manifest
    if isinstance(manifest, Manifest):
        longest = service.max_context if isinstance(service, ModelService) else prepared.max_length
        defaults = prepared.sampling_defaults
        return ModelReply(
            id=state.name,
            created=prepared.created,
            owned_by="ortserve",
            verified=prepared.verified,
            max_model_len=longest,
            context_length=longest,
            generation_defaults=GenerationValues(
                defaults.temperature, defaults.top_p, defaults.top_k, defaults.repetition_penalty
            ),
            state=state.phase,
        )
    longest = service.max_length if isinstance(service, EncoderService) else prepared.max_length
    return EncoderReply(
        id=state.name,
        created=prepared.created,
        owned_by="ortserve",
        verified=prepared.verified,
        max_model_len=longest,
        context_length=longest,
        task=manifest.task,
        dimensions=sorted({*manifest.dimensions, manifest.num_outputs}) if manifest.task == "embeddings" else [],
        prompt_names=sorted(manifest.prompts),
        state=state.phase,
    )
