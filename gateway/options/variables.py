"""Variables of the environment that are called as options are, and are none. Knows no option, and says no value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from ortserve.gateway.configuration.option import PREFIX

# Not of a server's configuration: its file and models, what other verbs read, and what a predecessor hands over.
OTHERS = frozenset({f"{PREFIX}CONFIG", f"{PREFIX}MODEL", f"{PREFIX}URL", f"{PREFIX}LISTENER"})
# What Kubernetes tells every container of a namespace about a service whose name begins with ours.
_LINK = re.compile(rf"{PREFIX}(.*_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
_LINKED = re.compile(r"(tcp|udp|sctp)://")


def without_links(environment: Mapping[str, str]) -> dict[str, str]:
    """The same without ORTSERVE_PORT=tcp://10.0.0.1:80, which Kubernetes sets where a service is called `ortserve`."""
    return {name: value for name, value in environment.items() if not (_LINK.fullmatch(name) and _LINKED.match(value))}


def unknown_variables(environment: Mapping[str, str], known: Collection[str]) -> dict[str, str | None]:
    """Those that no option has, and of each the one that it may have been meant for."""
    unknown = [
        name
        for name in environment
        if name.startswith(PREFIX) and name not in known and name not in OTHERS and not _LINK.fullmatch(name)
    ]
    words = [name.removeprefix(PREFIX) for name in known]
    near = {name: difflib.get_close_matches(name.removeprefix(PREFIX), words, n=1) for name in sorted(unknown)}
    return {name: PREFIX + found[0] if found else None for name, found in near.items()}
