"""What one key has used of its limits: requests and tokens by the minute, requests at once. Knows no route.

A request is admitted while tokens are left; those of its prompt are estimated by its bytes until they are known, and
what it has generated is charged when it ends. Whoever overdraws waits until the debt is paid.
"""

from __future__ import annotations

from ortserve.gateway.access.bucket import Bucket
from ortserve.gateway.access.grant import Grant, Limits
from ortserve.gateway.errors import ApiError, rate_limited
from ortserve.gateway.rate_limit import RateLimit

BYTES_PER_TOKEN = 4  # of a prompt that nobody has read yet
BUSY_RETRY_S = 1.0  # when the key's own requests are in the way


class Quota:
    """Of one key. Belongs to the event loop."""

    def __init__(self, limits: Limits, now_s: float) -> None:
        self._limits = limits
        self._requests = None if limits.requests_per_minute is None else Bucket(limits.requests_per_minute, now_s)
        self._tokens = None if limits.tokens_per_minute is None else Bucket(limits.tokens_per_minute, now_s)
        self.num_running = 0

    def change(self, limits: Limits, now_s: float) -> None:
        """Take over the limits of now, keeping what has been used."""
        if limits != self._limits:
            self._limits = limits
            self._requests = _changed(self._requests, limits.requests_per_minute, now_s)
            self._tokens = _changed(self._tokens, limits.tokens_per_minute, now_s)

    def admit(self, num_bytes: int, now_s: float) -> Visit:
        """Charge one request with a body of `num_bytes`. Raises `ApiError` (429), and then charges nothing."""
        limits = self._limits
        if limits.concurrency is not None and self.num_running >= limits.concurrency:
            raise ApiError(rate_limited("concurrent requests", limits.concurrency, retry_after_s=BUSY_RETRY_S))
        for bucket, word in ((self._requests, "requests per minute"), (self._tokens, "tokens per minute")):
            if bucket is not None and bucket.level(now_s) < 1:
                raise ApiError(rate_limited(word, bucket.per_minute, retry_after_s=bucket.wait_s(1, now_s)))
        estimate = num_bytes // BYTES_PER_TOKEN + 1
        if self._requests is not None:
            self._requests.take(1, now_s)
        self.charge(estimate, now_s)
        self.num_running += 1
        return Visit(self, estimate)

    def charge(self, num_tokens: int, now_s: float) -> None:
        """Count tokens, or give back what was estimated too high."""
        if self._tokens is not None:
            self._tokens.take(num_tokens, now_s)

    def limits(self, now_s: float) -> tuple[RateLimit, ...]:
        """What clients are told: bounds, what is left, and when all of it is again."""
        return tuple(
            RateLimit(
                word, bucket.per_minute, max(0, int(bucket.level(now_s))), bucket.wait_s(bucket.per_minute, now_s)
            )
            for bucket, word in ((self._requests, "requests"), (self._tokens, "tokens"))
            if bucket is not None
        )


class Visit:
    """One admitted request."""

    def __init__(self, quota: Quota, estimate: int) -> None:
        self._quota = quota
        self._estimate = estimate
        self._has_ended = False

    def end(self, num_tokens: int | None, now_s: float) -> None:
        """Settle what it has used; None: nothing was read. Once: later calls do nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        self._quota.num_running -= 1
        self._quota.charge((num_tokens or 0) - self._estimate, now_s)


class Quotas:
    """Of all keys with limits, by digest: they outlive what their file says of them."""

    def __init__(self) -> None:
        self._quotas: dict[bytes, Quota] = {}

    def of(self, grant: Grant, now_s: float) -> Quota | None:
        """None for a key without limits."""
        limits = grant.limits
        if (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency) == (None, None, None):
            return None
        quota = self._quotas.get(grant.digest)
        if quota is None:
            quota = self._quotas[grant.digest] = Quota(limits, now_s)
        quota.change(limits, now_s)
        return quota


def _changed(bucket: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    if per_minute is None:
        return None
    return Bucket(per_minute, now_s) if bucket is None else bucket.resized(per_minute, now_s)
