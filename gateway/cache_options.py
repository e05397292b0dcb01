"""Command-line options of the prompt cache, and what they mean to the engine. Knows no cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from ortserve.gateway.environment import default_of, num_bytes
from ortserve.gateway.plugin_options import PluginOptionsError, add_plugin_option, read_plugin_options
from ortserve.runtime.config import EngineConfig

# Names of options that the bundled cache knows; any other cache gets them under the same names.
PATH_OPTION = "path"
DISK_OPTION = "max_bytes"
_OPTION = "--prompt-cache-option"


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
    add_plugin_option(add, _OPTION, "an option of the cache itself; may be repeated")


def plugin_options(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The options the cache is made with. Raises `PluginOptionsError` when they contradict each other."""
    options = dict(read_plugin_options(_OPTION, arguments.prompt_cache_option))
    if arguments.prompt_cache_path is None and arguments.prompt_cache_disk is not None:
        raise PluginOptionsError("--prompt-cache-disk bounds the files in --prompt-cache-path: name that folder too")
    if arguments.prompt_cache == "none":
        return ()
    for name, value in (
        (PATH_OPTION, arguments.prompt_cache_path),
        (DISK_OPTION, arguments.prompt_cache_disk),
    ):
        if value is not None:
            options[name] = str(value)
    return tuple(options.items())
