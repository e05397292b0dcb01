"""Options of the prompt cache, and what they mean to the engine. Knows no cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ortserve.gateway.configuration.kinds import PAIRS, PATH, SIZE, TEXT, Pairs
from ortserve.gateway.configuration.option import option
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError

# Names of options that the bundled cache knows; any other cache gets them under the same names.
PATH_OPTION = "path"
DISK_OPTION = "max_bytes"


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Prompt caching."""

    SECTION: ClassVar[str] = "cache"

    prompt_cache: str = option(
        EngineConfig().prompt_cache,
        TEXT,
        f"a name that `ortserve plugins` lists, or none ({EngineConfig().prompt_cache})",
        metavar="NAME",
    )
    prompt_cache_memory: int | None = option(
        None, SIZE, "memory for it, as 2GiB (a fifth of what is free, at most 4 GiB)", metavar="SIZE"
    )
    prompt_cache_path: Path | None = option(
        None,
        PATH,
        "keep prefixes there too, across restarts and for other servers of this host (nowhere)",
        metavar="DIR",
    )
    prompt_cache_disk: int | None = option(
        None, SIZE, "most bytes of files in DIR (the cache's own bound)", metavar="SIZE"
    )
    prompt_cache_option: Pairs = option(
        (), PAIRS, "an option of the cache itself; may be repeated", metavar="KEY=VALUE"
    )


def plugin_options(settings: CacheSettings) -> Pairs:
    """The options the cache is made with. Raises `ConfigurationError` when they contradict each other."""
    options = dict(settings.prompt_cache_option)
    if settings.prompt_cache_path is None and settings.prompt_cache_disk is not None:
        raise ConfigurationError("--prompt-cache-disk bounds the files in --prompt-cache-path: name that folder too")
    if settings.prompt_cache == "none":
        return ()
    for name, value in (
        (PATH_OPTION, settings.prompt_cache_path),
        (DISK_OPTION, settings.prompt_cache_disk),
    ):
        if value is not None:
            options[name] = str(value)
    return tuple(options.items())
