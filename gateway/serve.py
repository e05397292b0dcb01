"""`ortserve serve`: options, the models opened, the server run. Knows no route."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import shlex
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.options import add_access_options, open_access, open_ledger
from ortserve.gateway.cache_options import add_cache_options
from ortserve.gateway.drafter_options import add_drafter_options, find_draft_model
from ortserve.gateway.environment import default_of, num_bytes, port, positive, seconds, switch_of
from ortserve.gateway.greeting import greeting
from ortserve.gateway.logs import LEVELS, configure_logs, log
from ortserve.gateway.opened import OpenedModels, open_catalog, open_models
from ortserve.gateway.server import Limits, listen, raise_file_limit, run_server, stop_on_signals
from ortserve.gateway.state_options import add_state_options, state_options
from ortserve.gateway.store.state import State
from ortserve.gateway.usage.ledger import Ledger
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.manifest import MANIFEST_NAME

EXAMPLE = """example:
  ortserve serve                                   the bundled model on http://127.0.0.1:8000
  ortserve serve ./smollm2-int8 --port 9000        an exported folder
  ortserve serve ./smollm2-int8 ./minilm-int8      a model that generates, and an encoder for embeddings
  HOST=0.0.0.0 PORT=80 MODEL=./qwen ortserve serve the same from the environment
Every option may also be set as ORTSERVE_<NAME>, for example ORTSERVE_MAX_ROWS=8.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the environment supplies their defaults."""
    parser.description = "Serve models with OpenAI's HTTP API: one that generates, and any number of encoders."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_options(parser, several=True)
    add_encoder_options(parser)
    add_access_options(parser)
    add = parser.add_argument
    add("--host", default=default_of("--host", "127.0.0.1", plain=True), help="address to listen on (127.0.0.1)")
    add("--port", type=port, default=default_of("--port", "8000", plain=True), help="0 takes a free one (8000)")
    add("--served-name", default=default_of("--served-name"), help="name of the first model (its own)")
    add(
        "--strict-parameters",
        action="store_true",
        default=switch_of("--strict-parameters"),
        help="refuse fields that no API has instead of naming them in x-ortserve-ignored",
    )
    add(
        "--warm",
        type=Path,
        default=default_of("--warm"),
        metavar="FILE",
        help="JSON lines of messages or prompts whose prefixes are computed at start and kept",
    )
    add(
        "--drain",
        type=seconds,
        default=default_of("--drain", "30"),
        metavar="S",
        help="seconds to finish on SIGTERM (30)",
    )
    add(
        "--log-level",
        choices=LEVELS,
        default=default_of("--log-level", "info"),
        help="of the JSON log on stderr (info)",
    )
    add("--quiet", action="store_true", default=switch_of("--quiet"), help="print nothing on stdout")


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Options of models for embeddings and scores."""
    add = parser.add_argument
    add(
        "--encoder-threads",
        type=positive,
        default=default_of("--encoder-threads"),
        metavar="N",
        help="threads of encoders (beside a model that generates: a quarter of the cores)",
    )
    add(
        "--encoder-batch-tokens",
        type=positive,
        default=default_of("--encoder-batch-tokens", "2048"),
        metavar="N",
        help="tokens, with padding, that an encoder computes at once (2048)",
    )
    add(
        "--accept-token-ids",
        action="store_true",
        default=switch_of("--accept-token-ids"),
        help="take token ids as input for embeddings: most clients send another tokenizer's (refused)",
    )


def add_model_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Options of any verb that opens a model in this process, or `several`."""
    add = parser.add_argument
    model_help = "exported folder, checkpoint folder or hub id, exported on first use (the bundled model)"
    model = default_of("--model", plain=True)
    if several:
        add("model", nargs="*", metavar="MODEL", default=shlex.split(model or ""), help=model_help)
    else:
        add("model", nargs="?", metavar="MODEL", default=model, help=model_help)
    add(
        "--device",
        default=default_of("--device", "auto"),
        help="auto, cpu, cuda or cuda:1 (auto: what the model is for)",
    )
    add(
        "--max-rows",
        type=positive,
        default=default_of("--max-rows"),
        metavar="N",
        help="sequences at once (16; CUDA: 64)",
    )
    add("--max-context", type=positive, default=default_of("--max-context"), metavar="N", help="tokens per sequence")
    add(
        "--max-step-ms",
        type=seconds,
        default=default_of("--max-step-ms"),
        metavar="MS",
        help="bound on one engine step",
    )
    add("--deterministic", action="store_true", default=switch_of("--deterministic"), help="same bits in any batch")
    add("--threads", type=positive, default=default_of("--threads"), metavar="N", help="threads of the model")
    add(
        "--kv-memory",
        type=num_bytes,
        default=default_of("--kv-memory"),
        metavar="SIZE",
        help="for running sequences, as 2GiB",
    )
    add(
        "--precision", default=default_of("--precision"), help="when the model must be exported first: int8, int4, fp32"
    )
    add(
        "--cache-dir",
        type=Path,
        default=default_of("--cache-dir"),
        metavar="DIR",
        help="where exported models are kept",
    )
    add(
        "--generation-defaults",
        choices=("model", "openai"),
        default=default_of("--generation-defaults", "model"),
        help="sampling values when a request omits them: the model author's, or OpenAI's (model)",
    )
    add(
        "--chat-template",
        type=Path,
        default=default_of("--chat-template"),
        metavar="FILE",
        help="a Jinja file in place of the model's own template; it also says how tools are called (the model's)",
    )
    add_cache_options(parser)
    add_drafter_options(parser)
    add_state_options(parser)


def run(arguments: argparse.Namespace, resolve_model: Callable[[str | None], Path]) -> int:
    """Serve until a signal; 0 after an orderly end. Raises `OrtserveError` for everything that prevents it."""
    began = time.monotonic()
    configure_logs(arguments.log_level)
    raise_file_limit()
    limits = Limits(drain_s=arguments.drain)
    listener = listen(arguments.host, arguments.port, limits)
    with contextlib.ExitStack() as opened:
        opened.callback(listener.close)
        access = open_access(arguments)  # before the models, as the next line: what is wrong shows at once
        ledger = open_ledger(arguments)
        if ledger is not None:
            opened.callback(ledger.close)
        state = State(state_options(arguments))
        opened.callback(state.database.close)
        folders = [exported_folder(model) or resolve_model(model) for model in arguments.model or [None]]
        models = open_models(folders, arguments, draft_model=find_draft_model(arguments, resolve_model))
        opened.callback(models.close)
        asyncio.run(
            _serve(arguments, models, listener, state, access=access, ledger=ledger, limits=limits, began=began)
        )
    return 0


def exported_folder(model: str | None) -> Path | None:
    """The folder itself when it is already an exported model: then nothing of export is imported."""
    return Path(model) if model and (Path(model) / MANIFEST_NAME).is_file() else None


async def _serve(
    arguments: argparse.Namespace,
    models: OpenedModels,
    listener: socket.socket,
    state: State,
    *,
    access: Access,
    ledger: Ledger | None,
    limits: Limits,
    began: float,
) -> None:
    from ortserve.gateway.app import build_app
    from ortserve.gateway.warming import read_warm_file, warm_all
    from ortserve.gateway.watch import Patience

    catalog = open_catalog(models, arguments)
    if arguments.warm is not None:
        if catalog.decoder is None:
            raise ConfigurationError("--warm computes prompts, and no model here generates: leave it out")
        await warm_all(catalog.decoder, read_warm_file(arguments.warm, catalog.decoder.vocabulary, whose=access.whose))
    app = build_app(
        catalog,
        access=access,
        ledger=ledger,
        strict_parameters=arguments.strict_parameters,
        patience=Patience(stall_s=limits.stall_s),
        state=state,
    )
    stop = asyncio.Event()
    stop_on_signals(stop)
    # What has been loaded stays: keep it out of every later collection, which would pause all streams.
    gc.collect()
    gc.freeze()
    host, port_ = listener.getsockname()[:2]
    names = [service.name for service in catalog.services]
    log().info("ready", models=names, host=host, port=port_, seconds=round(time.monotonic() - began, 2))
    if not arguments.quiet:
        sys.stdout.write(greeting(catalog, host, port_, needs_key=not access.ring.is_open))
        sys.stdout.flush()
    drain = partial(models.close, drain_s=limits.drain_s)
    await run_server(app, listener, limits=limits, stop=stop, drain=drain)
    catalog.close()
