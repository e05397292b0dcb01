"""`ortserve serve`: options, the models opened, the server run. Knows no route."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.options import open_access
from ortserve.gateway.fleet.options import generates, model_specs, new_spec
from ortserve.gateway.http.front import Front, open_socket, open_tls
from ortserve.gateway.http.server import Limits, raise_file_limit, run_server, stop_on_signals
from ortserve.gateway.logs import configure_logs, log
from ortserve.gateway.options.edge import edge_options
from ortserve.gateway.options.model import EngineSettings
from ortserve.gateway.options.settings import Settings, add_server_options, resolve
from ortserve.gateway.options.state import state_options
from ortserve.gateway.store.state import State
from ortserve.gateway.telemetry.tracing import Tracing, open_tracing
from ortserve.gateway.transport.gathering import GatheringSelector, new_loop
from ortserve.gateway.transport.supervisor import Supervisor
from ortserve.gateway.usage.ledger import Ledger
from ortserve.gateway.usage.options import accounted_units, open_ledger

if TYPE_CHECKING:
    from ortserve.gateway.fleet.fleet import Fleet
    from ortserve.gateway.fleet.spec import ModelSpec
    from ortserve.gateway.served.service import ModelService

# The exported folder of a checkpoint, a hub id, or (None) the bundled model: exported now as the settings say.
ResolveModel: TypeAlias = Callable[[EngineSettings, str | None], Path]

# How long a thread may keep the interpreter while another waits for it: a token that is ready waits for the engine's
# Python no longer than that. Python's own 5 ms were most of a token's way; shorter turns cost no processor time.
SWITCH_S = 0.0001

EXAMPLE = """example:
  ortserve serve                                   the bundled model on http://127.0.0.1:8000
  ortserve serve ./smollm2-int8 --port 9000        an exported folder
  ortserve serve ./smollm2-int8 ./minilm-int8      a model that generates, and an encoder for embeddings
  ortserve serve ./a ./b --load-on-demand --model-memory 8GiB   the second when it is first asked for
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
    parser.description = "Serve models with OpenAI's HTTP API: those that generate text, and encoders."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_server_options(parser)


def run(arguments: argparse.Namespace, resolve_model: ResolveModel) -> int:
    """Serve until a signal; 0 after an orderly end. Raises `OrtserveError` for everything that prevents it."""
    began = time.monotonic()
    resolved = resolve(arguments)
    settings = resolved.settings
    configure_logs(settings.logging.log_level)
    for name, near in resolved.unknown.items():
        log().warning("unknown_variable", variable=name, nearest=near)
    raise_file_limit()
    limits = Limits(
        drain_s=settings.server.drain, header_s=settings.limits.header_timeout, leave_s=settings.server.drain_delay
    )
    edge = edge_options(settings.edge, settings.limits)
    tls = open_tls(settings.tls)
    with contextlib.ExitStack() as opened:
        socket_ = open_socket(settings.server, settings.edge, limits)
        opened.callback(socket_.listener.close)
        # Before the models: what is wrong shows at once.
        access = open_access(settings.access, accounted_units(settings.usage))
        ledger = open_ledger(settings.usage)
        if ledger is not None:
            opened.callback(ledger.close)
        tracing = open_tracing(settings.tracing)
        if tracing is not None:
            opened.callback(tracing.close)
        state = State(state_options(settings.state))
        opened.callback(state.database.close)
        specs = model_specs(settings)
        front = Front(socket_, tls, edge, limits, Supervisor(os.environ, predecessor=socket_.predecessor))
        kept = Kept(access, state, ledger, tracing)
        selector = GatheringSelector()
        serving = _Serving(settings, front, kept, began, selector.refused)
        with asyncio.Runner(loop_factory=partial(new_loop, selector)) as runner:
            runner.run(_serve(serving, specs, resolve_model))
    _end_beside_loads()
    return 0


@dataclass(frozen=True, slots=True)
class _Serving:
    """One run of the server, besides its models."""

    settings: Settings
    front: Front
    kept: Kept
    began: float  # monotonic clock
    refused: Callable[[], None]  # by a full queue: called each time


async def _serve(serving: _Serving, specs: Sequence[ModelSpec], resolve_model: ResolveModel) -> None:
    from ortserve.gateway.app import build_app
    from ortserve.gateway.http.watch import Patience

    settings, front, kept = serving.settings, serving.front, serving.kept
    fleet = _new_fleet(serving, specs, resolve_model)
    app = build_app(
        fleet,
        access=kept.access,
        ledger=kept.ledger,
        tracing=kept.tracing,
        strict_parameters=settings.server.strict_parameters,
        admin_metrics=settings.access.admin_metrics,
        log_prompts=settings.logging.log_prompts,
        patience=Patience(stall_s=front.limits.stall_s),
        state=kept.state,
        edge=front.edge,
        new_model=partial(new_spec, settings),
        refused=serving.refused,
    )
    stop = asyncio.Event()
    stop_on_signals(stop)
    sys.setswitchinterval(SWITCH_S)
    if front.opened.predecessor is not None:  # it answers on the same socket until this one can
        await _loaded(fleet, stop)
    living = asyncio.create_task(_live(serving, fleet))
    living.add_done_callback(lambda task: stop.set() if not task.cancelled() and task.exception() else None)

    async def leave() -> None:
        front.supervisor.stopping()
        if front.limits.leave_s and fleet.is_started and not front.supervisor.is_replaced:  # else nobody has to notice
            log().info("leaving", seconds=front.limits.leave_s)
            fleet.is_leaving = True
            await asyncio.sleep(front.limits.leave_s)

    drain = partial(fleet.drain, front.limits.drain_s)
    try:
        await run_server(app, front.listener, limits=front.limits, stop=stop, drain=drain, leave=leave, tls=front.tls)
    finally:
        living.cancel()
        await fleet.close()
    with contextlib.suppress(asyncio.CancelledError):
        await living  # raises what has kept the models from being loaded


async def _loaded(fleet: Fleet, stop: asyncio.Event) -> None:
    """Load the models, unless a signal comes first."""
    starting, stopped = asyncio.create_task(fleet.start()), asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if starting.done():
        starting.result()
    else:
        starting.cancel()


async def _live(serving: _Serving, fleet: Fleet) -> None:
    """Load the models while the server already says that it does, greet, and heed signals until it is cancelled."""
    from ortserve.gateway.commands.greeting import greeting
    from ortserve.gateway.fleet.state import needs_restart

    front, settings = serving.front, serving.settings
    await fleet.start()
    # What has been loaded stays: keep it out of every later collection, which would pause all streams.
    gc.collect()
    gc.freeze()
    states = fleet.states()
    seconds = round(time.monotonic() - serving.began, 2)
    can_hand_over = settings.state.state_dir is None
    async with front.living(can_hand_over=can_hand_over, is_alive=lambda: not needs_restart(fleet.states())):
        log().info("ready", models=[state.name for state in states], **front.address(), seconds=seconds)
        if not settings.server.quiet:
            needs_key = not serving.kept.access.ring.is_open
            _greet(greeting(states, front.url, needs_key=needs_key, unix=front.unix))
        await asyncio.get_running_loop().create_future()


def _greet(text: str) -> None:
    """Print it, if anybody reads: that nobody does is no reason to end."""
    try:
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
    except OSError as error:
        log().warning("greeting_not_written", error=str(error))
        sys.stdout = None  # or the interpreter would try again when it ends


def _new_fleet(serving: _Serving, specs: Sequence[ModelSpec], resolve_model: ResolveModel) -> Fleet:
    from ortserve.gateway.fleet.fleet import Fleet
    from ortserve.gateway.fleet.member import Tools
    from ortserve.gateway.fleet.opening import FolderOpener
    from ortserve.gateway.served.warming import read_warm_file, warm_all
    from ortserve.runtime.host.machine import memory_budget
    from ortserve.runtime.host.threads import share_cores
    from ortserve.runtime.session import default_num_threads
    from ortserve.runtime.workers.restarts import Restarts

    settings = serving.settings
    engines = [spec for spec in specs if generates(spec)]
    wishes = [spec.engine.num_threads for spec in engines if spec.engine.num_threads is not None]
    cores = share_cores(
        default_num_threads(),
        has_engine=bool(engines),
        has_encoders=len(engines) < len(specs),
        engine=max(wishes, default=None),
        encoders=settings.encoders.encoder_threads,
        num_processes=max((spec.options.engines or 0 for spec in engines), default=0),
    )
    log().info("threads", engine=cores.threads.engine, encoders=cores.threads.encoders)

    async def warm(service: ModelService, file: Path) -> None:
        await warm_all(service, read_warm_file(file, service.vocabulary, whose=serving.kept.access.whose))

    return Fleet(
        specs,
        Tools(FolderOpener(resolve_model, cores), Restarts(), warm),
        memory=settings.fleet.model_memory or memory_budget().available,
        drain_s=serving.front.limits.drain_s,
    )


def _end_beside_loads() -> None:
    """End now if a model is still being loaded or exported, which cannot be stopped: nobody waits for it any more.

    The ordinary end would take libraries apart under the thread that computes in them.
    """
    from ortserve.gateway.fleet.daemon import is_running

    if is_running():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
