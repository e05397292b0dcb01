"""What one API key grants. Frozen values; never hold a key, only its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from ortserve.gateway.access.tenancy import tenant_of
from ortserve.gateway.directory import Directory
from ortserve.gateway.errors import ApiError, Problem

Scope = Literal["inference", "admin"]

Period = Literal["day", "month"]
Unit = Literal["tokens", "cost"]

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one key may use in a calendar day or month, UTC; a cost is in the currency of the prices."""

    unit: Unit
    period: Period
    amount: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one key; None: without. `priority`: larger runs first. `weight`: the tenant's share under load."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    priority: int = 0
    weight: int = 1
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """One key's name, tenant and permissions. `models` None: all of them."""

    name: str
    digest: bytes  # SHA-256 of the key, 32 bytes
    tenant: bytes
    scopes: frozenset[Scope] = frozenset({"inference"})
    models: frozenset[str] | None = None
    limits: Limits = Limits()

    def may_use(self, name: str, directory: Directory) -> bool:
        """Whether the model of that name is allowed; a model allowed under one of its names is under all of them."""
        if self.models is None:
            return True
        names = next((model.names for model in directory.models if name in model.names), (name,))
        return not self.models.isdisjoint(names)

    def check_model(self, name: str, directory: Directory) -> None:
        """Raise `ApiError` (403) for a served model that is not allowed; unknown names are for others to refuse."""
        is_served = any(name in model.names for model in directory.models)
        if is_served and not self.may_use(name, directory):
            message = f"This API key does not have access to model `{name}`."
            raise ApiError(Problem(403, message, param="model", code="model_not_found"))


def digest_of(key: bytes) -> bytes:
    """What is kept of a key. A plain SHA-256: keys are random, so that slow hashing would protect nothing more."""
    return hashlib.sha256(key).digest()


def anonymous(key: bytes) -> Grant:
    """What anyone is granted where no key is asked for; whatever is sent as one keeps cached prompts apart."""
    return Grant(ANONYMOUS, digest_of(key), tenant_of(key))
