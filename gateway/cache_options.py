"""Command-line options of the prompt cache, and what they mean to the engine. Knows no cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from ortserve.gateway.environment import default_of, num_bytes
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import OrtserveError

# Names of options that the bundled cache knows; any other cache gets them under the same names.
PATH_OPTION = "path"
DISK_OPTION = "max_bytes"


class CacheOptionsError(OrtserveError):
    """Options that contradict each other."""


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the environment supplies their defaults."""
    add = parser.add_argument_group("prompt caching").add_argument
    name = EngineConfig().prompt_cache
    add(
        "--prompt-cache",
        default=default_of("--prompt-cache", name),
        metavar="NAME",
        help=f"a name that `ortserve plugins` lists, or none ({name})",
    )
    add(
        "--prompt-cache-memory",
        type=num_bytes,
        default=default_of("--prompt-cache-memory"),
        metavar="SIZE",
        help="memory for it, as 2GiB (a fifth of what is free, at most 4 GiB)",
    )
    add(
        "--prompt-cache-path",
        type=Path,
        default=default_of("--prompt-cache-path"),
        metavar="DIR",
        help="keep prefixes there too, across restarts and for other servers of this host (nowhere)",
    )
    add(
        "--prompt-cache-disk",
        type=num_bytes,
        default=default_of("--prompt-cache-disk"),
        metavar="SIZE",
        help="most bytes of files in DIR (the cache's own bound)",
    )
    add(
        "--prompt-cache-option",
        type=key_value,
        action="append",
        default=None,  # the environment is read in `cache_config`: argparse would append to a default
        metavar="KEY=VALUE",
        help="an option of the cache itself; may be repeated",
    )


def key_value(text: str) -> tuple[str, str]:
    """An argparse type: KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not of the form KEY=VALUE")
    return key, value


def plugin_options(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The options the cache is made with. Raises `CacheOptionsError` when they contradict each other."""
    pairs = arguments.prompt_cache_option
    if pairs is None:
        # Several are separated by commas in the environment, where a name can be given only once.
        text = default_of("--prompt-cache-option") or ""
        try:
            pairs = [key_value(part.strip()) for part in text.split(",") if part.strip()]
        except argparse.ArgumentTypeError as error:
            raise CacheOptionsError(f"ORTSERVE_PROMPT_CACHE_OPTION: {error}") from None
    options = dict(pairs)
    if arguments.prompt_cache_path is None and arguments.prompt_cache_disk is not None:
        raise CacheOptionsError("--prompt-cache-disk bounds the files in --prompt-cache-path: name that folder too")
    if arguments.prompt_cache == "none":
        return ()
    for name, value in (
        (PATH_OPTION, arguments.prompt_cache_path),
        (DISK_OPTION, arguments.prompt_cache_disk),
    ):
        if value is not None:
            options[name] = str(value)
    return tuple(options.items())
