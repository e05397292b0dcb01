"""What requests may say about prompt caching, how it is refused when wrong, and what the engine is told."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ortserve.gateway.access.tenancy import salt_of, tenant_of
from ortserve.gateway.prompts.hints import cache_hints
from ortserve.gateway.schema.caching import CacheWish
from ortserve.plugins.api import Breakpoint, CacheMode
from ortserve.runtime.request import CacheHints
from tests.gateway.running import Running
from tests.gateway.test_errors import CHAT, TEXT, chat, check, text

TENANT = tenant_of(b"")
AUTO, EXPLICIT, OFF = CacheMode.AUTO, CacheMode.EXPLICIT, CacheMode.OFF


def marked(point: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "hi", "prompt_cache_breakpoint": point}]}]


POINT = "messages[0].content[0].prompt_cache_breakpoint"
WRONG = [
    ({"prompt_cache_key": 7}, "invalid_type", "prompt_cache_key"),
    ({"prompt_cache_key": "x" * 1025}, "string_above_max_length", "prompt_cache_key"),
    ({"prompt_cache_retention": "1h"}, "invalid_value", "prompt_cache_retention"),
    ({"prompt_cache_options": "explicit"}, "invalid_type", "prompt_cache_options"),
    ({"prompt_cache_options": {"mode": "always"}}, "invalid_value", "prompt_cache_options.mode"),
    ({"prompt_cache_options": {"ttl": 30}}, "invalid_type", "prompt_cache_options.ttl"),
    ({"prompt_cache_options": {"ttl": "30"}}, "invalid_value", "prompt_cache_options.ttl"),
    ({"prompt_cache_options": {"ttl": "0m"}}, "invalid_value", "prompt_cache_options.ttl"),
    ({"prompt_cache_options": {"ttl": "25h"}}, "invalid_value", "prompt_cache_options.ttl"),
    ({"prompt_cache_options": {"ttl": "٣m"}}, "invalid_value", "prompt_cache_options.ttl"),
    ({"cache_salt": 7}, "invalid_type", "cache_salt"),
    ({"cache_salt": ""}, "empty_string", "cache_salt"),
]


@pytest.mark.parametrize(("fields", "code", "param"), WRONG)
def test_refusals_of_both_endpoints(http: httpx.Client, fields: dict[str, Any], code: str, param: str) -> None:
    check(http.post(CHAT, json=chat(**fields)), 400, code, param)
    check(http.post(TEXT, json=text(**fields)), 400, code, param)


@pytest.mark.parametrize(
    ("point", "code", "param"),
    [
        ("explicit", "invalid_type", POINT),
        ({}, "missing_required_parameter", f"{POINT}.mode"),
        ({"mode": "implicit"}, "invalid_value", f"{POINT}.mode"),
        ({"mode": "explicit", "ttl": "soon"}, "invalid_value", f"{POINT}.ttl"),
    ],
)
def test_refusals_of_breakpoints(http: httpx.Client, point: object, code: str, param: str) -> None:
    check(http.post(CHAT, json=chat(messages=marked(point))), 400, code, param)


def told(server: Running, http: httpx.Client, path: str, **fields: Any) -> CacheHints:
    """What the engine is told about a request with these fields."""
    body = chat(**fields) if path == CHAT else text(**fields)
    headers = fields.pop("headers", {})
    assert http.post(path, json=body, headers=headers).status_code == 200
    return server.driver.submitted[-1].cache


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_without_a_word_everything_may_be_reused_within_the_tenant(
    server: Running, http: httpx.Client, path: str
) -> None:
    nothing: dict[str, Any] = {
        "prompt_cache_key": None,
        "prompt_cache_options": None,
        "prompt_cache_retention": None,
        "cache_salt": None,
    }
    assert told(server, http, path) == told(server, http, path, **nothing) == CacheHints(salt_of(TENANT))
    assert told(server, http, path, prompt_cache_retention="24h") == CacheHints(salt_of(TENANT))


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_retention_in_memory_keeps_a_prompt_off_the_disk(server: Running, http: httpx.Client, path: str) -> None:
    told_it = told(server, http, path, prompt_cache_retention="in_memory")
    assert told_it == CacheHints(salt_of(TENANT), durable=False)
    explicit = told(
        server, http, path, prompt_cache_retention="in_memory", prompt_cache_options={"mode": "off", "ttl": "1h"}
    )
    assert explicit == CacheHints(salt_of(TENANT), CacheMode.OFF, durable=False)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_cache_key_is_affinity_and_a_salt_isolates(server: Running, http: httpx.Client, path: str) -> None:
    assert told(server, http, path, prompt_cache_key="k") == CacheHints(salt_of(TENANT), affinity="k")
    assert told(server, http, path, cache_salt="s") == CacheHints(salt_of(TENANT, "s"))


def test_keys_are_tenants(server: Running, http: httpx.Client) -> None:
    salts = set()
    for headers in ({}, {"authorization": "Bearer a"}, {"authorization": "Bearer b"}, {"x-api-key": "a"}):
        assert http.post(CHAT, json=chat(), headers=headers).status_code == 200
        salts.add(server.driver.submitted[-1].cache.salt)
    assert salts == {salt_of(tenant_of(key)) for key in (b"", b"a", b"b")}


def test_breakpoints_reach_the_engine(server: Running, http: httpx.Client) -> None:
    messages = marked({"mode": "explicit", "ttl": "12h"})
    hints = told(server, http, CHAT, messages=messages, prompt_cache_options={"mode": "explicit"})
    (point,) = hints.breakpoints
    prompt = server.driver.submitted[-1].prompt
    assert 0 < point.num_tokens < len(prompt)
    assert (hints.mode, point.ttl_s) == (EXPLICIT, 12 * 3600)
    choices = told(server, http, CHAT, messages=messages, n=2)
    assert [request.cache for request in server.driver.submitted[-2:]] == [choices, choices]


POINTS = (Breakpoint(3, 60.0),)


@pytest.mark.parametrize(
    ("wish", "points", "expected"),
    [
        (CacheWish(), (), (AUTO, ())),
        (CacheWish(), POINTS, (AUTO, POINTS)),
        (CacheWish(ttl_s=90.0), POINTS, (AUTO, (*POINTS, Breakpoint(8, 90.0)))),
        (CacheWish(EXPLICIT), POINTS, (EXPLICIT, POINTS)),
        (CacheWish(EXPLICIT, ttl_s=90.0), POINTS, (EXPLICIT, POINTS)),
        (CacheWish(EXPLICIT), (), (OFF, ())),  # as at OpenAI: nothing marked, nothing cached
        (CacheWish(OFF, ttl_s=90.0), POINTS, (OFF, ())),
    ],
)
def test_modes(
    wish: CacheWish, points: tuple[Breakpoint, ...], expected: tuple[CacheMode, tuple[Breakpoint, ...]]
) -> None:
    hints = cache_hints(wish, TENANT, num_prompt_tokens=8, breakpoints=points)
    assert (hints.mode, hints.breakpoints) == expected
