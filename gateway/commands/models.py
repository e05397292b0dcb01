"""`ortserve models`: the models of a running server through /admin/models. Knows no engine."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from ortserve.gateway.commands.admin_client import admin_client, admin_parser, call, seconds_text, size_text, table_text
from ortserve.gateway.configuration.kinds import SECONDS
from ortserve.gateway.configuration.option import argument

EXAMPLE = """example:
  ortserve serve ./chat ./minilm --admin-key SECRET &
  ortserve models ls --admin-key SECRET                    what is loaded, and the memory it may take
  ortserve models unload minilm --admin-key SECRET         its requests end first
  ortserve models load minilm --admin-key SECRET
  ortserve models load --source ./other --alias new --admin-key SECRET
  ortserve models swap chat ./chat-v2 --admin-key SECRET   another model under the same names
The key may also be set as ORTSERVE_ADMIN_KEY, the address as ORTSERVE_URL.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Look at and change the models of a running server, which needs an --admin-key."
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = admin_parser()
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|load|unload|swap")
    actions.add_parser("ls", parents=[common], help="all models, loaded or not")
    loading = actions.add_parser("load", parents=[common], help="load a model that is known, or one from elsewhere")
    loading.add_argument("model", nargs="?", metavar="MODEL", help="a name that ls shows")
    loading.add_argument(
        "--source", metavar="SOURCE", help="another one instead: a folder or hub id, as the server sees it"
    )
    loading.add_argument("--name", metavar="NAME", help="of a source (its own)")
    loading.add_argument("--alias", action="append", default=[], metavar="NAME", help="a further name; repeatable")
    loading.add_argument("--pin", action="store_true", help="never let it give way to another model")
    loading.add_argument("--no-wait", action="store_true", help="return at once")
    unloading = actions.add_parser("unload", parents=[common], help="let go of a model until it is loaded again")
    unloading.add_argument("model", metavar="MODEL")
    swapping = actions.add_parser("swap", parents=[common], help="put another model in the place of one")
    swapping.add_argument("model", metavar="MODEL", help="whose names go over")
    swapping.add_argument("source", metavar="SOURCE", help="a folder or hub id, as the server sees it")
    for ending in (unloading, swapping):
        ending.add_argument("--drain", type=argument(SECONDS), metavar="S", help="for running requests (the server's)")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; 0. Raises `AdminClientError`."""
    with admin_client(arguments) as client:
        if arguments.action == "ls":
            reply = call(client, "GET", "/admin/models")
        else:
            body = {key: value for key, value in _body(arguments).items() if value not in (None, [])}
            reply = call(client, "POST", f"/admin/models/{arguments.action}", msgspec.json.encode(body))
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(reply).decode() + "\n")
    else:
        sys.stdout.write(_list_text(reply) if arguments.action == "ls" else _model_text(reply))
    return 0


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    match arguments.action:
        case "load":
            return {
                "model": arguments.model,
                "source": arguments.source,
                "name": arguments.name,
                "aliases": arguments.alias,
                "pinned": arguments.pin or None,
                "wait": False if arguments.no_wait else None,
            }
        case "unload":
            return {"model": arguments.model, "drain": arguments.drain}
        case _:
            return {"model": arguments.model, "source": arguments.source, "drain": arguments.drain}


def _list_text(reply: Any) -> str:
    rows = [("model", "state", "for", "task", "memory", "requests", "idle", "restarts", "also called")]
    rows += [
        (
            model["id"],
            model["state"] + (" (pinned)" if model["pinned"] else ""),
            seconds_text(model["state_seconds"]),
            model["task"] or "?",
            size_text(model["memory_bytes"]),
            str(model["requests"]),
            "" if model["idle_seconds"] is None else seconds_text(model["idle_seconds"]),
            str(model["restarts"]),
            ", ".join(model["aliases"]),
        )
        for model in reply["data"]
    ]
    failures = "".join(f"{model['id']}: {model['error']}\n" for model in reply["data"] if model["error"])
    used = f"{size_text(reply['used_bytes'])} of {size_text(reply['memory_bytes'])} are set aside\n"
    return table_text(rows) + failures + used


def _model_text(model: Any) -> str:
    return f"{model['id']} is {model['state']}, {size_text(model['memory_bytes'])} are set aside for it\n"
