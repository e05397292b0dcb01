"""One line of the ledger: what one request has used. Holds no key, no prompt and no reply."""

from __future__ import annotations

import msgspec


class UsageLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request. `prompt` has `cached` in it, `completion` has `accepted` in it; times are seconds."""

    time: float  # since the epoch, when it ended
    request_id: str
    key: str  # its name
    key_digest: str
    tenant: str
    model: str
    prompt: int
    cached: int
    completion: int
    accepted: int  # tokens that a drafter had guessed
    seconds: float
    outcome: str
    cost: float | None = None  # None: the model has no price
