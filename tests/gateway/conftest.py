"""Fixtures shared by the gateway's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from ortserve.export.bundled import bundled_draft, bundled_model
from ortserve.export.publish import export_checkpoint
from ortserve.gateway.logs import configure_logs
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying

REPLY = "hello world, caf\u00e9 \U0001f600!"


@pytest.fixture(autouse=True)
def _quiet_logs() -> None:
    configure_logs("error")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server that always says `REPLY`, one token per step."""
    with running(make_driver(saying(REPLY))) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    """Every reply and event is validated against the SDK's types."""
    url = f"{server.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in int8, exported once for all tests."""
    folder = tmp_path_factory.mktemp("pocket") / "int8"
    export_checkpoint(bundled_model(), folder, precision="int8", verify=False, progress=False)
    return folder


@pytest.fixture(scope="session")
def pocket_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its small sibling in int8."""
    folder = tmp_path_factory.mktemp("pocket") / "draft-int8"
    export_checkpoint(bundled_draft(), folder, precision="int8", verify=False, progress=False)
    return folder
