"""The first words of a server: its address and two ways to try it. Knows no socket and starts nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ortserve.gateway.catalog import Catalog

MESSAGES = '[{"role": "user", "content": "Hello!"}]'


@dataclass(frozen=True, slots=True)
class Trial:
    """One call to the first model, in Python and as curl's path and body."""

    python: str
    path: str
    body: str


def greeting(catalog: Catalog, url: str, *, needs_key: bool, unix: str | None = None) -> str:
    """What is printed once requests are answered; `url` is the server's, with its base path and without /v1."""
    url = f"{url}/v1"
    key = "YOUR-KEY" if needs_key else "any"
    header = " -H 'Authorization: Bearer YOUR-KEY'" if needs_key else ""
    trial = _trial(catalog)
    imports, client, curl, place = "", "", "curl", url
    if unix is not None:
        imports = "import httpx\n"
        client = f", http_client=httpx.Client(transport=httpx.HTTPTransport(uds={unix!r}))"
        curl = f"curl --unix-socket {shlex.quote(unix)}"
        place = f"{url} over {unix}"
    return f"""{_models(catalog)} is served on {place}

{imports}from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}"{client})
{trial.python}

{curl} {url}/{trial.path}{header} -H 'Content-Type: application/json' \\
  -d '{trial.body}'
"""


def _models(catalog: Catalog) -> str:
    lines = []
    if catalog.decoder is not None:
        decoder = catalog.decoder
        doubt = _doubt(catalog, decoder.name)
        lines.append(f"{decoder.name} ({decoder.manifest.precision}, context {decoder.max_context}{doubt})")
    for one in catalog.encoders:
        doubt = _doubt(catalog, one.name)
        lines.append(f"{one.name} ({one.manifest.precision}, {one.manifest.task}, inputs of {one.max_length}{doubt})")
    return " and ".join(lines)


def _doubt(catalog: Catalog, name: str) -> str:
    return "" if catalog.directory.is_verified(name) else ", UNVERIFIED"


def _trial(catalog: Catalog) -> Trial:
    if catalog.decoder is not None:
        name = catalog.decoder.name
        python = f"""messages = {MESSAGES}
for chunk in client.chat.completions.create(model="{name}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""
        return Trial(python, "chat/completions", f'{{"model": "{name}", "messages": {MESSAGES}}}')
    encoder = catalog.encoders[0]
    name = encoder.name
    if encoder.manifest.task == "rerank":
        body = f'{{"model": "{name}", "query": "a greeting", "documents": ["Hello!", "17"]}}'
        return Trial(f'print(client.post("/rerank", body={body}, cast_to=object))', "rerank", body)
    python = f'print(client.embeddings.create(model="{name}", input="Hello!").data[0].embedding)'
    return Trial(python, "embeddings", f'{{"model": "{name}", "input": "Hello!"}}')
