"""How long each hostile body takes to be refused, and what it leaves in memory, while the server streams to others.

  python -m tests.bench.hostile_bodies --json out.json

`ortserve serve` with the bundled model is a child process. Each body is sent alone on a connection of its own, several
times in turns with all others; the time is from the first byte sent to the last one received, and beside it stands the
processor time that the server took, which a busy machine distorts least. Bodies that only look hostile are answered
with a 200 and are measured for memory alone.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

from tests.bench.measurement import HOST, Goal, Spread, finish, script_parser, serving, spread
from tests.gateway import hostile
from tests.gateway.test_bad_input import BODIES

CHAT = "/v1/chat/completions"
LONGEST_S = 0.1
MOST_MEGABYTES = 64.0


def structured(fields: Mapping[str, object]) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"model": "pocket", "messages": messages, "max_tokens": 8, **fields}).encode()


def send(port: int, path: str, body: bytes) -> tuple[int, float]:
    """Status and seconds of one request."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection((HOST, port), 60) as connection:
        begun = perf_counter()
        connection.sendall(head.encode() + body)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
        return int(reply.split(b" ", 2)[1]), perf_counter() - begun


def resident_megabytes(process_id: int) -> float:
    status = Path(f"/proc/{process_id}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1000


def main() -> int:
    arguments = script_parser(__doc__ or "").parse_args()
    bodies = {name: (path, body.replace(b'"scripted"', b'"pocket"')) for name, (path, body) in BODIES.items()}
    bodies |= {name: (CHAT, structured(fields)) for name, fields in {**hostile.REFUSED, **hostile.TAKEN}.items()}
    times: dict[str, list[float]] = {name: [] for name in bodies}
    cpu_times: dict[str, list[float]] = {name: [] for name in bodies}
    with serving("pocket") as server:
        port = urlsplit(server.url).port or 0
        for path, body in bodies.values():
            send(port, path, body)  # whatever is allocated once
        before = resident_megabytes(server.process_id)
        peak = before
        for _ in range(arguments.rounds):
            for name, (path, body) in bodies.items():
                cpu_before = server.cpu_seconds()
                status, seconds = send(port, path, body)
                cpu_times[name].append(server.cpu_seconds() - cpu_before)
                assert status == 200 if name in hostile.TAKEN else 400 <= status < 500, f"{name}: {status}"
                times[name].append(seconds)
                peak = max(peak, resident_megabytes(server.process_id))
    spreads = {name: spread(values) for name, values in times.items()}
    cpu_spreads = {name: spread(values) for name, values in cpu_times.items()}
    for name, one in sorted(spreads.items(), key=lambda item: -item[1].median):
        print(f"{1000 * one.median:8.1f} ms, {1000 * cpu_spreads[name].median:6.1f} of a processor  {name}")
    goals = [
        Goal("seconds until the slowest refusal", slowest_refusal(spreads), at_most=LONGEST_S),
        Goal("seconds of a processor for the dearest refusal", slowest_refusal(cpu_spreads), at_most=LONGEST_S),
        Goal("megabytes of growth over all rounds", spread([peak - before]), at_most=MOST_MEGABYTES),
    ]
    memory = {"before": before, "peak": peak}
    return finish(arguments, goals, {"seconds": times, "cpu_seconds": cpu_times, "megabytes": memory})


def slowest_refusal(spreads: Mapping[str, Spread]) -> Spread:
    return max((one for name, one in spreads.items() if name not in hostile.TAKEN), key=lambda one: one.median)


if __name__ == "__main__":
    sys.exit(main())
