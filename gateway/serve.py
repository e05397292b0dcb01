"""`ortserve serve`: options, the model opened, the server run, the first words printed. Knows no route."""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ortserve.gateway.cache_options import add_cache_options, plugin_options
from ortserve.gateway.environment import default_of, num_bytes, port, positive, seconds, switch_of
from ortserve.gateway.logs import LEVELS, configure_logs, log
from ortserve.gateway.server import Limits, listen, raise_file_limit, run_server, stop_on_signals
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from ortserve.gateway.service import ModelService
    from ortserve.runtime.driver import Driver

EXAMPLE = """example:
  ortserve serve                                   the bundled model on http://127.0.0.1:8000
  ortserve serve ./smollm2-int8 --port 9000        an exported folder
  HOST=0.0.0.0 PORT=80 MODEL=./qwen ortserve serve the same from the environment
Every option may also be set as ORTSERVE_<NAME>, for example ORTSERVE_MAX_ROWS=8.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the environment supplies their defaults."""
    parser.description = "Serve a model with OpenAI's HTTP API."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_options(parser)
    add = parser.add_argument
    add("--host", default=default_of("--host", "127.0.0.1", plain=True), help="address to listen on (127.0.0.1)")
    add("--port", type=port, default=default_of("--port", "8000", plain=True), help="0 takes a free one (8000)")
    add("--served-name", default=default_of("--served-name"), help="model name clients use (the model's own)")
    add("--api-key", default=default_of("--api-key"), help="clients must send it (none: every key is accepted)")
    add(
        "--admin-key",
        default=default_of("--admin-key"),
        help="opens /admin/cache to those who send it (none: closed to everyone)",
    )
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


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of any verb that opens a model in this process."""
    add = parser.add_argument
    model_help = "exported folder, checkpoint folder or hub id, exported on first use (the bundled model)"
    add("model", nargs="?", metavar="MODEL", default=default_of("--model", plain=True), help=model_help)
    add("--device", default=default_of("--device", "auto"), help="auto or cpu (auto)")
    add("--max-rows", type=positive, default=default_of("--max-rows", "16"), metavar="N", help="sequences at once (16)")
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
        "--drafter",
        default=default_of("--drafter", EngineConfig().drafter),
        metavar="NAME",
        help="guesses tokens ahead: a name that `ortserve plugins` lists, or none (none)",
    )
    add(
        "--generation-defaults",
        choices=("model", "openai"),
        default=default_of("--generation-defaults", "model"),
        help="sampling values when a request omits them: the model author's, or OpenAI's (model)",
    )
    add_cache_options(parser)


def run(arguments: argparse.Namespace, resolve_model: Callable[[str | None], Path]) -> int:
    """Serve until a signal; 0 after an orderly end. Raises `OrtserveError` for everything that prevents it."""
    began = time.monotonic()
    configure_logs(arguments.log_level)
    raise_file_limit()
    limits = Limits(drain_s=arguments.drain)
    listener = listen(arguments.host, arguments.port, limits)
    try:
        folder = exported_folder(arguments.model) or resolve_model(arguments.model)
        driver = open_model(folder, arguments)
        try:
            asyncio.run(_serve(arguments, folder, driver, listener, limits=limits, began=began))
        finally:
            driver.close()
    finally:
        listener.close()
    return 0


def exported_folder(model: str | None) -> Path | None:
    """The folder itself when it is already an exported model: then nothing of export is imported."""
    return Path(model) if model and (Path(model) / MANIFEST_NAME).is_file() else None


def open_model(folder: Path, arguments: argparse.Namespace) -> Driver:
    """Start the engine. Raises `ModelError`, `MemoryBudgetError` or `DeviceError`."""
    from ortserve.runtime.opening import open_driver

    driver = open_driver(
        folder,
        EngineConfig(
            device=arguments.device,
            max_rows=arguments.max_rows,
            max_context=arguments.max_context,
            kv_memory=arguments.kv_memory,
            max_step_ms=arguments.max_step_ms,
            num_threads=arguments.threads,
            deterministic=arguments.deterministic,
            prompt_cache=arguments.prompt_cache,
            prompt_cache_memory=arguments.prompt_cache_memory,
            prompt_cache_options=plugin_options(arguments),
            drafter=arguments.drafter,
        ),
    )
    log().info("memory_plan", plan=str(driver.plan))
    return driver


async def _serve(
    arguments: argparse.Namespace,
    folder: Path,
    driver: Driver,
    listener: socket.socket,
    *,
    limits: Limits,
    began: float,
) -> None:
    from ortserve.gateway.app import build_app
    from ortserve.gateway.service import open_service
    from ortserve.gateway.tenancy import tenant_of
    from ortserve.gateway.warming import read_warm_file, warm_all
    from ortserve.gateway.watch import Patience

    service = open_service(
        folder,
        driver,
        name=arguments.served_name,
        defaults=arguments.generation_defaults,
        created=int((folder / MANIFEST_NAME).stat().st_mtime),
    )
    if arguments.warm is not None:
        tenant = tenant_of((arguments.api_key or "").encode())
        await warm_all(service, read_warm_file(arguments.warm, service.vocabulary, tenant=tenant))
    app = build_app(
        service,
        api_key=arguments.api_key,
        admin_key=arguments.admin_key,
        strict_parameters=arguments.strict_parameters,
        patience=Patience(stall_s=limits.stall_s),
    )
    stop = asyncio.Event()
    stop_on_signals(stop)
    # What has been loaded stays: keep it out of every later collection, which would pause all streams.
    gc.collect()
    gc.freeze()
    host, port_ = listener.getsockname()[:2]
    log().info("ready", model=service.name, host=host, port=port_, seconds=round(time.monotonic() - began, 2))
    if not arguments.quiet:
        sys.stdout.write(greeting(service, host, port_, needs_key=arguments.api_key is not None))
        sys.stdout.flush()
    drain = partial(driver.close, drain_s=limits.drain_s)
    await run_server(app, listener, limits=limits, stop=stop, drain=drain)
    service.pool.close()


def greeting(service: ModelService, host: str, port_: int, *, needs_key: bool) -> str:
    """The address and two ways to try it."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    url = f"http://{shown}:{port_}/v1"
    key = "YOUR-KEY" if needs_key else "any"
    header = " -H 'Authorization: Bearer YOUR-KEY'" if needs_key else ""
    manifest = service.manifest
    return f"""{service.name} ({manifest.precision}, context {service.max_context}) is served on {url}

from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}")
messages = [{{"role": "user", "content": "Hello!"}}]
for chunk in client.chat.completions.create(model="{service.name}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)

curl {url}/chat/completions{header} -H 'Content-Type: application/json' \\
  -d '{{"model": "{service.name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
"""
