"""The names of all models of one server and what each of them does. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ortserve.gateway.errors import bad_request, model_not_found

Task = Literal["generate", "embeddings", "rerank"]

ABILITIES: dict[Task, str] = {
    "generate": "generates text: use /v1/chat/completions, /v1/completions or /v1/messages",
    "embeddings": "makes embeddings: use /v1/embeddings, /v1/rerank or /v1/score",
    "rerank": "scores pairs of texts: use /v1/rerank or /v1/score",
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model and every name it answers to; the first is the one that is shown."""

    names: tuple[str, ...]
    task: Task
    verified: bool = True  # its report proves it; False: it runs because the operator allows it
    own_name: str | None = None  # one of the names: its export's own, where the operator has given it another


@dataclass(frozen=True, slots=True)
class Directory:
    """All models, in the order they were named."""

    models: tuple[ServedModel, ...]

    def is_verified(self, name: str) -> bool:
        """Whether the model of that name is; every name here belongs to one."""
        return next(model.verified for model in self.models if name in model.names)

    def knows(self, name: str) -> bool:
        """Whether some model has that name."""
        return any(name in model.names for model in self.models)

    def default(self, task: Task) -> str | None:
        """The name of the first model that does something; None without one."""
        return next((model.names[0] for model in self.models if model.task == task), None)

    def find(self, name: str, *wanted: Task) -> ServedModel:
        """The model of that name. Raises `ApiError`: 404 for an unknown name, 400 for one that does something else."""
        model = next((model for model in self.models if name in model.names), None)
        if model is None:
            raise model_not_found(name, [model.names[0] for model in self.models])
        if model.task not in wanted:
            message = f"The model `{name}` cannot be used here. It {ABILITIES[model.task]}."
            raise bad_request(message, param="model", code="unsupported_model")
        return model
