"""The first words of a server: its address and two ways to try it. Knows no socket and starts nothing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ortserve.gateway.fleet.state import ModelState
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.encoders.manifest import EncoderManifest

MESSAGES = '[{"role": "user", "content": "Hello!"}]'


@dataclass(frozen=True, slots=True)
class Trial:
    """One call to the first model, in Python and as curl's path and body."""

    python: str
    path: str
    body: str


def greeting(states: Sequence[ModelState], url: str, *, needs_key: bool, unix: str | None = None) -> str:
    """What is printed once requests are answered; `url` is the server's, with its base path and without /v1."""
    url = f"{url}/v1"
    key = "YOUR-KEY" if needs_key else "any"
    header = " -H 'Authorization: Bearer YOUR-KEY'" if needs_key else ""
    trial = _trial(states[0])
    imports, client, curl, place = "", "", "curl", url
    if unix is not None:
        imports = "import httpx\n"
        client = f", http_client=httpx.Client(transport=httpx.HTTPTransport(uds={unix!r}))"
        curl = f"curl --unix-socket {shlex.quote(unix)}"
        place = f"{url} over {unix}"
    return f"""{_models(states)} is served on {place}

{imports}from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}"{client})
{trial.python}

{curl} {url}/{trial.path}{header} -H 'Content-Type: application/json' \\
  -d '{trial.body}'
"""


def _models(states: Sequence[ModelState]) -> str:
    lines = []
    for state in states:
        service, prepared = state.service, state.prepared
        doubt = "" if prepared is None or prepared.verified else ", UNVERIFIED"
        if isinstance(service, ModelService):
            about = f"{service.manifest.precision}, context {service.max_context}"
        elif service is not None:
            about = f"{service.manifest.precision}, {service.manifest.task}, inputs of {service.max_length}"
        elif prepared is not None:
            about = f"{prepared.manifest.precision}, loaded when it is asked for"
        else:
            about = "exported and loaded when it is asked for"
        lines.append(f"{state.name} ({about}{doubt})")
    return " and ".join(lines)


def _trial(state: ModelState) -> Trial:
    name, manifest = state.name, None if state.prepared is None else state.prepared.manifest
    if not isinstance(manifest, EncoderManifest):
        python = f"""messages = {MESSAGES}
for chunk in client.chat.completions.create(model="{name}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""
        return Trial(python, "chat/completions", f'{{"model": "{name}", "messages": {MESSAGES}}}')
    if manifest.task == "rerank":
        body = f'{{"model": "{name}", "query": "a greeting", "documents": ["Hello!", "17"]}}'
        return Trial(f'print(client.post("/rerank", body={body}, cast_to=object))', "rerank", body)
    python = f'print(client.embeddings.create(model="{name}", input="Hello!").data[0].embedding)'
    return Trial(python, "embeddings", f'{{"model": "{name}", "input": "Hello!"}}')
