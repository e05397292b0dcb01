"""Which strangers' clients are driven against a real server, and in which environment each is. Runs nothing.

Generations of one library pin against each other, so each suite has an environment of its own, locked in `locks/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Runtime = Literal["python", "node"]


@dataclass(frozen=True, slots=True)
class Suite:
    """One run of a client's tests. `tests` are files in `clients/`; `lock` is a name in `locks/`."""

    name: str
    runtime: Runtime
    lock: str
    tests: tuple[str, ...]
    shows: tuple[str, ...]  # the packages whose versions belong into the table
    options: tuple[str, ...] = ()  # of the test runner


SUITES = (
    Suite(
        "openai 3, anthropic", "python", "openai3", ("client_openai.py", "client_anthropic.py"), ("openai", "anthropic")
    ),
    Suite("openai 2", "python", "openai2", ("client_openai.py",), ("openai",)),
    Suite(
        "langchain",
        "python",
        "langchain",
        ("client_langchain.py",),
        ("langchain-openai", "langchain-tests"),
        options=("-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"),
    ),
    Suite("litellm", "python", "litellm", ("client_litellm.py",), ("litellm",)),
    Suite(
        "instructor, pydantic-ai, openai-agents",
        "python",
        "agents",
        ("client_instructor.py", "client_pydantic_ai.py", "client_agents.py"),
        ("instructor", "pydantic-ai-slim", "openai-agents"),
    ),
    Suite("schemathesis", "python", "schemathesis", ("client_schemathesis.py",), ("schemathesis",)),
    Suite("openai for JavaScript", "node", "javascript", ("client_openai.mjs",), ("openai",)),
    Suite("ai-sdk", "node", "javascript", ("client_ai_sdk.mjs",), ("ai", "@ai-sdk/openai")),
)
