"""`ortserve chat`: a conversation in the terminal, with a model in this process or behind a URL. Knows no template."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ortserve.gateway.commands.serve import ResolveModel
from ortserve.gateway.configuration.option import add_options
from ortserve.gateway.errors import ApiError
from ortserve.gateway.fleet.options import engine_config
from ortserve.gateway.logs import LEVELS, configure_logs
from ortserve.gateway.options.drafter import find_draft_model
from ortserve.gateway.options.environment import default_of
from ortserve.gateway.options.model import MODEL_HELP
from ortserve.gateway.options.settings import OF_MODELS, model_settings
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.served.exported import exported_folder
from ortserve.gateway.served.verified import check_verified, report_draft
from ortserve.runtime.errors import OrtserveError

if TYPE_CHECKING:
    import httpx

    from ortserve.gateway.served.service import ModelService

EXAMPLE = """example:
  ortserve chat                                       the bundled model
  ortserve chat ./smollm2-int8 --system "Be brief."
  ortserve chat --url http://127.0.0.1:8000/v1        a running server
  echo "What is 2 + 2?" | ortserve chat               one reply per line

/reset forgets the conversation, /quit ends it, Ctrl-C stops the current reply.
"""

Message = dict[str, str]
Write = Callable[[str], None]


class ChatError(OrtserveError):
    """The server could not be reached, or refused the request."""


class Speaker(Protocol):
    """Something that answers conversations."""

    @property
    def name(self) -> str:
        """The model's name."""

    def reply(self, body: dict[str, object], write: Write) -> None:
        """Write the reply piece by piece. Raises `ChatError`, and `KeyboardInterrupt` when it was stopped."""


class LocalSpeaker:
    """A model in this process. Its event loop runs only while a reply is generated."""

    def __init__(self, runner: asyncio.Runner, service: ModelService) -> None:
        self._runner = runner
        self._service = service

    @property
    def name(self) -> str:
        """The model's name."""
        return self._service.name

    def reply(self, body: dict[str, object], write: Write) -> None:
        """Part of `Speaker`. Ctrl-C cancels the generation; asyncio's runner turns it into `KeyboardInterrupt`."""
        self._runner.run(self._generate(body, write))

    async def _generate(self, body: dict[str, object], write: Write) -> None:
        from ortserve.gateway.access.tenancy import tenant_of
        from ortserve.gateway.access.turn import Turn
        from ortserve.gateway.schema.chat import read_chat

        service = self._service
        try:
            request = read_chat(Fields(body), service.defaults, service.vocabulary)
            generation = await service.start_chat(request, turn=Turn(tenant_of(b"")), num_body_bytes=len(str(body)))
            try:
                async with aclosing(generation.batches()) as batches:
                    async for batch in batches:
                        write("".join(piece.text for piece in batch))
            finally:
                generation.close()
        except ApiError as error:
            raise ChatError(error.problem.message) from None


class RemoteSpeaker:
    """A model behind an OpenAI-compatible URL."""

    def __init__(self, client: httpx.Client, url: str, model: str) -> None:
        self._client = client
        self._url = url
        self._model = model

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model

    def reply(self, body: dict[str, object], write: Write) -> None:
        """Part of `Speaker`. Leaving the stream closes the connection, which cancels the request at the server."""
        import httpx

        try:
            with self._client.stream(
                "POST", f"{self._url}/chat/completions", json={**body, "stream": True}
            ) as response:
                if response.status_code != 200:
                    raise ChatError(_error_message(response.read(), response.status_code))
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        write(_chunk_text(line[6:]))
        except httpx.HTTPError as error:
            raise ChatError(f"{self._url} did not answer ({error}): check --url") from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Talk to a model in the terminal."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", default=default_of("--model", plain=True), help=MODEL_HELP)
    add_options(parser, *OF_MODELS)
    add("--url", default=default_of("--url"), help="talk to this server, as http://127.0.0.1:8000/v1, instead")
    add("--served-name", default=default_of("--served-name"), help="the model's name at --url (the first it lists)")
    add("--api-key", default=default_of("--api-key", "any"), help="for --url")
    add("--system", help="instructions that precede the conversation")
    add("--temperature", type=float, help="0 always takes the most likely token")
    add("--max-tokens", type=int, help="longest reply")
    add("--seed", type=int, help="the same seed gives the same replies")
    add(
        "--log-level",
        choices=LEVELS,
        default=default_of("--log-level", "error"),
        help="of the JSON log on stderr (error)",
    )


def run(arguments: argparse.Namespace, resolve_model: ResolveModel) -> int:
    """Talk until the input ends; 0 then. Raises `OrtserveError` when the model cannot be opened or reached."""
    configure_logs(arguments.log_level)
    with _open_speaker(arguments, resolve_model) as speaker:
        return _talk(speaker, arguments)


@contextmanager
def _open_speaker(arguments: argparse.Namespace, resolve_model: ResolveModel) -> Iterator[Speaker]:
    with ExitStack() as stack:
        if arguments.url:
            yield _connect(arguments, stack)
            return
        from ortserve.gateway.fleet.opening import report_plan
        from ortserve.gateway.served.service import open_service
        from ortserve.runtime.workers.opening import open_engines

        settings = model_settings(arguments)
        find = partial(resolve_model, settings.engine)
        folder = exported_folder(arguments.model) or find(arguments.model)
        draft_model = find_draft_model(settings.drafter, arguments.model, find)
        check_verified(folder, allow=settings.engine.allow_unverified)
        if draft_model is not None:
            report_draft(Path(draft_model))
        config = replace(engine_config(settings), draft_model=draft_model)
        driver = open_engines(folder, config, num_engines=settings.engine.engines or None)
        report_plan(driver)
        stack.callback(driver.close)
        runner = stack.enter_context(asyncio.Runner())

        async def open_in_loop() -> ModelService:
            return open_service(
                folder,
                driver,
                defaults=settings.engine.generation_defaults,
                chat_template=settings.engine.chat_template,
            )

        service = runner.run(open_in_loop())
        stack.callback(service.pool.close)
        yield LocalSpeaker(runner, service)


def _connect(arguments: argparse.Namespace, stack: ExitStack) -> Speaker:
    import httpx

    url = arguments.url.rstrip("/")
    headers = {"authorization": f"Bearer {arguments.api_key}"}
    client = stack.enter_context(httpx.Client(headers=headers, timeout=httpx.Timeout(600.0, connect=5.0)))
    model = arguments.served_name
    if model is None:
        try:
            response = client.get(f"{url}/models")
            if response.status_code != 200:
                raise ChatError(_error_message(response.content, response.status_code))
            model = response.json()["data"][0]["id"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ChatError(
                f"{url}/models did not list a model ({error}): check --url, or name one with --served-name"
            ) from None
    return RemoteSpeaker(client, url, model)


def _talk(speaker: Speaker, arguments: argparse.Namespace) -> int:
    interactive = sys.stdin.isatty()
    start: list[Message] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    options = {
        name: value for name in ("temperature", "max_tokens", "seed") if (value := getattr(arguments, name)) is not None
    }
    conversation = list(start)
    if interactive:
        import readline  # noqa: F401  # gives input() its line editing

        _write(f"{speaker.name}: /reset forgets, /quit ends, Ctrl-C stops a reply\n")
    while (line := _read_line(interactive=interactive)) is not None:
        text = line.strip().encode("utf-8", "replace").decode()  # a terminal may deliver bytes that are no text
        if text == "/quit":
            break
        if text == "/reset":
            conversation = list(start)
        elif text:
            conversation.append({"role": "user", "content": text})
            _answer(speaker, {"model": speaker.name, "messages": conversation, **options}, conversation)
    return 0


def _answer(speaker: Speaker, body: dict[str, object], conversation: list[Message]) -> None:
    """One reply; a stopped one is kept as far as it came, a failed one takes the question back."""
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        _write(text)

    try:
        speaker.reply(body, write)
    except KeyboardInterrupt:
        _write(" [stopped]")
    except ChatError as error:
        conversation.pop()
        sys.stderr.write(f"{error}\n")
        return
    _write("\n")
    conversation.append({"role": "assistant", "content": "".join(pieces)})


def _read_line(*, interactive: bool) -> str | None:
    """The next line, None at the end of the input; Ctrl-C at the prompt ends too."""
    try:
        if interactive:
            return input("> ")
        return sys.stdin.readline() or None
    except (EOFError, KeyboardInterrupt):
        _write("\n")
        return None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _chunk_text(data: str) -> str:
    import msgspec

    chunk = msgspec.json.decode(data)
    if "error" in chunk:
        raise ChatError(str(chunk["error"].get("message", chunk["error"])))
    choices = chunk.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def _error_message(body: bytes, status: int) -> str:
    import msgspec

    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"the server answered {status}"
