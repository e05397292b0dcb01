"""`ortserve serve`: options, the models opened, the server run. Knows no route."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.options import open_access, open_ledger
from ortserve.gateway.drafter_options import find_draft_model
from ortserve.gateway.edge_options import edge_options
from ortserve.gateway.front import Front, open_socket, open_tls
from ortserve.gateway.greeting import greeting
from ortserve.gateway.logs import configure_logs, log
from ortserve.gateway.model_options import EngineSettings, ModelSettings
from ortserve.gateway.opened import OpenedModels, open_catalog, open_models
from ortserve.gateway.server import Limits, raise_file_limit, run_server, stop_on_signals
from ortserve.gateway.settings import Settings, add_server_options, resolve
from ortserve.gateway.state_options import state_options
from ortserve.gateway.store.state import State
from ortserve.gateway.tracing import Tracing, open_tracing
from ortserve.gateway.usage.ledger import Ledger
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.manifest import MANIFEST_NAME

# The exported folder of a checkpoint, a hub id, or (None) the bundled model: exported now as the settings say.
ResolveModel: TypeAlias = Callable[[EngineSettings, str | None], Path]

# How long a thread may keep the interpreter while another waits for it: a token that is ready waits for the engine's
# Python no longer than that. Python's own 5 ms were most of a token's way; shorter turns cost no processor time.
SWITCH_S = 0.0001

EXAMPLE = """example:
  ortserve serve                                   the bundled model on http://127.0.0.1:8000
  ortserve serve ./smollm2-int8 --port 9000        an exported folder
  ortserve serve ./smollm2-int8 ./minilm-int8      a model that generates, and an encoder for embeddings
  HOST=0.0.0.0 PORT=80 MODEL=./qwen ortserve serve the same from the environment
  ortserve serve --config ortserve.toml            everything from a file; `ortserve config` shows what it comes to

Every option is also a key of the file, as max_rows, and a variable of the environment, as ORTSERVE_MAX_ROWS=8.
Flags go before the environment, and the environment before the file.
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a server keeps besides its models: keys, replies, accounts, traces."""

    access: Access
    state: State
    ledger: Ledger | None
    tracing: Tracing | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Serve models with OpenAI's HTTP API: one that generates, and any number of encoders."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_server_options(parser)


def run(arguments: argparse.Namespace, resolve_model: ResolveModel) -> int:
    """Serve until a signal; 0 after an orderly end. Raises `OrtserveError` for everything that prevents it."""
    began = time.monotonic()
    settings = resolve(arguments).settings
    configure_logs(settings.logging.log_level)
    raise_file_limit()
    limits = Limits(drain_s=settings.server.drain, header_s=settings.limits.header_timeout)
    edge = edge_options(settings.edge, settings.limits)
    tls = open_tls(settings.tls)
    with contextlib.ExitStack() as opened:
        socket_ = open_socket(settings.server, settings.edge, limits)
        opened.callback(socket_.listener.close)
        # Before the models: what is wrong shows at once.
        access = open_access(settings.access, settings.usage)
        ledger = open_ledger(settings.usage)
        if ledger is not None:
            opened.callback(ledger.close)
        tracing = open_tracing(settings.tracing)
        if tracing is not None:
            opened.callback(tracing.close)
        state = State(state_options(settings.state))
        opened.callback(state.database.close)
        models = _open_models(settings, resolve_model)
        opened.callback(models.close)
        front = Front(socket_, tls, edge, limits)
        kept = Kept(access, state, ledger, tracing)
        asyncio.run(_serve(settings, models, front, kept, began=began))
    return 0


def _open_models(settings: Settings, resolve_model: ResolveModel) -> OpenedModels:
    chosen: list[tuple[Path, ModelSettings]] = []
    draft_model = None
    for one in settings.models:
        find = partial(resolve_model, one.engine)
        chosen.append((exported_folder(one.entry.model) or find(one.entry.model), one))
        draft_model = draft_model or find_draft_model(one.drafter, one.entry.model, find)
    return open_models(chosen, settings.encoders, draft_model=draft_model)


def exported_folder(model: str | None) -> Path | None:
    """The folder itself when it is already an exported model: then nothing of export is imported."""
    return Path(model) if model and (Path(model) / MANIFEST_NAME).is_file() else None


async def _serve(
    settings: Settings,
    models: OpenedModels,
    front: Front,
    kept: Kept,
    *,
    began: float,
) -> None:
    from ortserve.gateway.app import build_app
    from ortserve.gateway.warming import read_warm_file, warm_all
    from ortserve.gateway.watch import Patience

    server = settings.server
    catalog = open_catalog(models, settings.encoders, served_name=server.served_name)
    if server.warm is not None:
        if catalog.decoder is None:
            raise ConfigurationError("--warm computes prompts, and no model here generates: leave it out")
        await warm_all(
            catalog.decoder, read_warm_file(server.warm, catalog.decoder.vocabulary, whose=kept.access.whose)
        )
    app = build_app(
        catalog,
        access=kept.access,
        ledger=kept.ledger,
        tracing=kept.tracing,
        strict_parameters=server.strict_parameters,
        admin_metrics=settings.access.admin_metrics,
        log_prompts=settings.logging.log_prompts,
        patience=Patience(stall_s=front.limits.stall_s),
        state=kept.state,
        edge=front.edge,
    )
    stop = asyncio.Event()
    stop_on_signals(stop)
    sys.setswitchinterval(SWITCH_S)
    # What has been loaded stays: keep it out of every later collection, which would pause all streams.
    gc.collect()
    gc.freeze()
    names = [service.name for service in catalog.services]
    log().info("ready", models=names, **front.address(), seconds=round(time.monotonic() - began, 2))
    if not server.quiet:
        sys.stdout.write(greeting(catalog, front.url, needs_key=not kept.access.ring.is_open, unix=front.unix))
        sys.stdout.flush()
    drain = partial(models.close, drain_s=front.limits.drain_s)
    async with front.living(can_hand_over=settings.state.state_dir is None):
        await run_server(app, front.listener, limits=front.limits, stop=stop, drain=drain, tls=front.tls)
    catalog.close()
