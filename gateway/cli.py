"""The console script: a table of verbs, and every deliberate error as one line and exit status 2. Does no work itself.

A verb's module is imported only when that verb is named, so that `ortserve --help` needs no library. This is the one
file that may also call export's entry functions: `serve` and `chat` export a checkpoint on first use.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ortserve.runtime.errors import OrtserveError

if TYPE_CHECKING:
    from ortserve.gateway.options.model import EngineSettings

Pair: TypeAlias = tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]

PROGRAM = "ortserve"
EPILOG = """first steps:
  ortserve serve                              serve the bundled model on http://127.0.0.1:8000
  ortserve export SRC DST --precision int8    turn a Hugging Face checkpoint into a model folder
  ortserve serve DST                          serve it
  ortserve VERB --help                        options and an example of each verb
"""


@dataclass(frozen=True, slots=True)
class Verb:
    """One subcommand: its line in the overview, and where its two functions come from."""

    name: str
    summary: str
    load: Callable[[], Pair]

    @property
    def words(self) -> list[str]:
        """As they are typed."""
        return self.name.split()


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb. 0: done, 1: a check failed, 2: bad usage or input, 130: interrupted."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        verb = _named(words)
        if verb is None:
            _overview().parse_args(words)  # --help, --version or a wrong verb: exits by itself
            _overview().print_help()
            return 2
        configure, run = verb.load()
        parser = argparse.ArgumentParser(prog=f"{PROGRAM} {verb.name}")
        configure(parser)
        return run(parser.parse_args(words[len(verb.words) :]))
    except OrtserveError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `ortserve inspect ... | head`
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        return 130


def _named(words: list[str]) -> Verb | None:
    """The longest that fits: `bench speculation` before `bench`."""
    fitting = [verb for verb in VERBS if words[: len(verb.words)] == verb.words]
    return max(fitting, key=lambda verb: len(verb.words), default=None)


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="An OpenAI-compatible inference gateway on ONNX Runtime.",
        epilog="verbs:\n" + "".join(f"  {verb.name:<19}{verb.summary}\n" for verb in VERBS) + "\n" + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{PROGRAM} VERB [options]",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    parser.add_argument("verb", nargs="?", choices=[verb.words[0] for verb in VERBS], metavar="VERB", help="see below")
    return parser


def _version() -> str:
    try:
        return version(PROGRAM)
    except PackageNotFoundError:
        return "unknown"


def _resolve_model(settings: EngineSettings, model: str | None) -> Path:
    """The exported folder of a checkpoint, a hub id, or the bundled model; exported now if the cache lacks it."""
    from ortserve.export import cli as export
    from ortserve.runtime.devices.choice import export_target

    return export.ensure_exported(
        export.bundled_model() if model is None else export.resolve_source(model),
        settings.cache_dir or _default_cache(),
        precision=settings.precision,
        kv=settings.kv,
        progress=True,
        device=export_target(settings.device),
    )


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / PROGRAM / "models"


def _load_serve() -> Pair:
    from ortserve.gateway.commands import serve

    return serve.configure, lambda arguments: serve.run(arguments, _resolve_model)


def _load_config() -> Pair:
    from ortserve.gateway.commands import config as config_cli

    return config_cli.configure, config_cli.run


def _load_chat() -> Pair:
    from ortserve.gateway.commands import chat as chat_client

    return chat_client.configure, lambda arguments: chat_client.run(arguments, _resolve_model)


def _load_cache() -> Pair:
    from ortserve.gateway.commands import cache as cache_cli

    return cache_cli.configure, cache_cli.run


def _load_models() -> Pair:
    from ortserve.gateway.commands import models as models_cli

    return models_cli.configure, models_cli.run


def _load_keys() -> Pair:
    from ortserve.gateway.access import keys_cli

    return keys_cli.configure, keys_cli.run


def _load_usage() -> Pair:
    from ortserve.gateway.usage import cli

    return cli.configure, cli.run


def _load_plugins() -> Pair:
    from ortserve.gateway.commands import plugins as plugins_cli

    return plugins_cli.configure, plugins_cli.run


def _load_bench() -> Pair:
    from ortserve.gateway.bench import cli

    return cli.configure, cli.run


def _load_speculation() -> Pair:
    from ortserve.gateway.bench import speculation_cli

    return speculation_cli.configure, speculation_cli.run


def _load_doctor() -> Pair:
    from ortserve.gateway.doctor import cli

    return cli.configure, cli.run


def _load_export(name: str) -> Pair:
    from ortserve.export import cli

    pairs = {
        "export": (cli.configure_export, cli.run_export),
        "import": (cli.configure_import, cli.run_import),
        "verify": (cli.configure_verify, cli.run_verify),
        "inspect": (cli.configure_inspect, cli.run_inspect),
        "toy": (cli.configure_toy, cli.run_toy),
        "widen": (cli.configure_widen, cli.run_widen),
    }
    return pairs[name]


VERBS = (
    Verb("serve", "serve a model with OpenAI's HTTP API", _load_serve),
    Verb("config", "print how a server would be configured, and where each value comes from", _load_config),
    Verb("chat", "talk to a model in the terminal", _load_chat),
    Verb("export", "turn a Hugging Face checkpoint into a model folder, with proof", partial(_load_export, "export")),
    Verb("import", "take over a model folder that another exporter made", partial(_load_export, "import")),
    Verb("verify", "check an exported model, or prove it again", partial(_load_export, "verify")),
    Verb("inspect", "print what an exported model is", partial(_load_export, "inspect")),
    Verb("cache", "look at and change the prompt cache of a running server", _load_cache),
    Verb("models", "look at and change the models of a running server", _load_models),
    Verb("keys", "make API keys, and lines for --api-keys", _load_keys),
    Verb("usage", "sum up what a server's ledger says has been used", _load_usage),
    Verb("plugins", "list installed plugins and where they come from", _load_plugins),
    Verb("bench", "load a running server and measure it", _load_bench),
    Verb("bench speculation", "measure what a running server's drafter brings", _load_speculation),
    Verb("doctor", "check this machine and installation, and recommend a precision", _load_doctor),
    Verb("toy", "write a random checkpoint of a real shape, to measure speed", partial(_load_export, "toy")),
    Verb("widen", "widen a small checkpoint to the cost of a larger shape", partial(_load_export, "widen")),
)

if __name__ == "__main__":
    sys.exit(main())
