"""A server under more load than it can carry: four questions, one file that needs ortserve and nothing else.

python under_load.py overload|tenants|streams|drain [MODEL] [--server-cores 0-7] [--client-cores 8-15] [--json FILE]

overload: arrivals at five times the peak rate; goodput, the wait of those admitted, memory, how others are refused.
tenants: the time to first token of one tenant, alone and beside another that floods.
streams: so many active streams beside so many idle connections.
drain: SIGTERM while streams run and wait; none may lose a token.

The server and this client run on cores of their own. Prompts are token ids, each request's its own; lengths are exact.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ortserve.gateway.bench.client import Connection
from ortserve.gateway.bench.http1 import ProtocolError
from ortserve.runtime.machine import cpu_facts

HOST, PATH = "127.0.0.1", "/v1/completions"
NAME = "loaded"  # what the model is called here
MAX_RETRY_AFTER_S = 60
SETTLE_S = 15.0  # of a load, before anything is measured


@dataclass(slots=True)
class Reply:
    """One request as its client saw it; times in seconds."""

    sent_s: float
    status: int = 0
    first_s: float | None = None  # when the first text came
    end_s: float = 0.0
    text: str = ""
    num_tokens: int = 0
    finish: str | None = None
    failure: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.failure is None and self.finish is not None

    def feed(self, data: bytes) -> None:
        """One event."""
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            self.failure = event["error"]["message"]
            return
        for choice in event["choices"]:
            if choice["text"] and self.first_s is None:
                self.first_s = time.perf_counter()
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish
        if event.get("usage"):
            self.num_tokens = event["usage"]["completion_tokens"]


class Caller:
    """Sends requests one after another on one connection, opened again when the server has closed it."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self._port, self._key = port, key
        self._connection: Connection | None = None

    async def ask(self, body: dict[str, Any]) -> Reply:
        """A streamed completion. Raises nothing for what the server or the network does."""
        reply, rest = Reply(time.perf_counter()), bytearray()

        def take(piece: bytes, _: float) -> None:
            reply.body += piece if len(reply.body) < 4096 else b""
            rest.extend(piece)
            while (end := rest.find(b"\n\n")) >= 0:
                for line in bytes(rest[:end]).split(b"\n"):
                    if line.startswith(b"data: "):
                        reply.feed(line[6:])
                del rest[: end + 2]

        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        try:
            reply.status = await self._send(b"POST", PATH.encode(), data, take)
        except (OSError, ProtocolError) as error:
            reply.failure = f"{type(error).__name__}: {error}"
        reply.end_s = time.perf_counter()
        if self._connection is not None and reply.status not in (0, 200):
            reply.headers = dict(self._connection.headers)
        return reply

    async def get(self, path: str) -> bytes:
        pieces: list[bytes] = []
        status = await self._send(b"GET", path.encode(), b"", lambda piece, _: pieces.append(piece))
        if status != 200:
            raise OSError(f"{path} answered {status}")
        return b"".join(pieces)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _send(self, method: bytes, path: bytes, data: bytes, sink: Callable[[bytes, float], None]) -> int:
        head = [b"%b %b HTTP/1.1" % (method, path), b"host: x", b"content-length: %d" % len(data)]
        head += [b"content-type: application/json"] if data else []
        head += [] if self._key is None else [b"authorization: Bearer " + self._key.encode()]
        if self._connection is None or not self._connection.usable:
            loop = asyncio.get_running_loop()
            _, self._connection = await loop.create_connection(Connection, HOST, self._port)
        return await self._connection.exchange(b"\r\n".join([*head, b"", data]), sink)


@dataclass(slots=True)
class Server:
    port: int
    process: subprocess.Popen[bytes]

    def memory(self) -> int:
        """Resident bytes of the server and its children."""
        found, total = [self.process.pid], 0
        for pid in found:
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return total


@contextlib.contextmanager
def serving(arguments: argparse.Namespace, *options: str) -> Iterator[Server]:
    """`ortserve serve` on its cores; what it logs is shown when it does not come up."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "ortserve.gateway.cli", "serve", *arguments.model, "--port", str(port)]
    words += ["--served-name", NAME, "--quiet", "--log-level", "warning", "--max-rows", str(arguments.rows), *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stderr=log)
        if arguments.server_cores:  # long before it counts them
            os.sched_setaffinity(process.pid, arguments.server_cores)
        try:
            wait_until_ready(port, process, log)
            yield Server(port, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            if connection.recv(64).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.1)
    log.seek(0)
    raise SystemExit(f"the server did not come up: {log.read().decode()[-2000:]}")


def body(arguments: argparse.Namespace, number: int, *, prompt_tokens: int | None = None) -> dict[str, Any]:
    """Request `number`: ids that no other has, so that nothing is cached."""
    dice = random.Random(number)
    length = prompt_tokens or arguments.prompt_tokens
    count = arguments.output_tokens
    prompt = [dice.randrange(100, 1000) for _ in range(length)]
    limits = {"max_tokens": count, "min_tokens": count, "ignore_eos": True}
    return {"model": NAME, "prompt": prompt, "temperature": 0, **limits}


async def closed_loop(
    callers: Sequence[Caller], make: Callable[[int], dict[str, Any]], until_s: float, numbers: Iterator[int]
) -> list[Reply]:
    """Each caller sends its next request when its last one is done."""
    replies: list[Reply] = []

    async def work(caller: Caller) -> None:
        while time.perf_counter() < until_s:
            replies.append(await caller.ask(make(next(numbers))))

    await asyncio.gather(*map(work, callers))
    return replies


def goodput(replies: Sequence[Reply], begin_s: float, end_s: float) -> float:
    """Output tokens a second of replies that have ended whole in that time."""
    ended = [one for one in replies if one.is_whole and begin_s <= one.end_s < end_s]
    return sum(one.num_tokens for one in ended) / (end_s - begin_s)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def is_proper(reply: Reply) -> bool:
    """A refusal that a client understands: status, when to return, and the error's envelope."""
    try:
        error = json.loads(reply.body)["error"]
        wait_s = int(reply.headers["retry-after"])
    except (ValueError, KeyError, TypeError):
        return False
    return reply.status in (429, 503) and 0 < wait_s <= MAX_RETRY_AFTER_S and bool(error["code"])


async def overload(arguments: argparse.Namespace, report: Report) -> None:
    numbers = iter(range(10**9))
    make = partial(body, arguments)
    # A small cache is full before the load begins: what grows afterwards is a leak.
    options = ("--max-waiting", str(arguments.waiting), "--prompt-cache-memory", "32MiB")
    with serving(arguments, *options) as server:
        peak, rate = 0.0, 0.0
        for factor in (1, 2):  # rows just full, and a queue behind them
            begin = time.perf_counter()
            end = begin + SETTLE_S + arguments.peak_s
            callers = [Caller(server.port) for _ in range(factor * arguments.rows)]
            replies = await closed_loop(callers, make, end, numbers)
            found = goodput(replies, begin + SETTLE_S, end)
            peak, rate = max((peak, rate), (found, found / arguments.output_tokens))
        print(f"peak {peak:.0f} tokens/s, {rate:.1f} requests/s; now {arguments.factor:g} times as many")
        replies, memory = await open_loop(arguments, server, rate * arguments.factor, make, numbers)
    begin = replies[0].sent_s
    window = begin + SETTLE_S, begin + arguments.duration
    found = goodput(replies, *window)
    admitted = [one for one in replies if one.status == 200]
    waits = [one.first_s - one.sent_s for one in admitted if one.first_s is not None]
    # What is admitted waits behind a full queue at the most: as long as the peak rate takes to serve it, and half more.
    bound = 1.5 * (arguments.waiting + arguments.rows) / rate + 1.0
    third = len(memory) // 3
    refused = [one for one in replies if one.status != 200]
    report.details |= {
        "peak_tokens_per_s": peak,
        "goodput_tokens_per_s": found,
        "offered_requests_per_s": rate * arguments.factor,
        "statuses": Counter(str(one.status) for one in replies),
        "ttft_s": {name: percentile(waits, share) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
        "memory_mib": [round(one / 2**20) for one in memory[:: max(len(memory) // 20, 1)]],
        "retry_after_s": Counter(one.headers.get("retry-after") for one in refused),
    }
    report.goal("goodput over peak", found / peak, at_least=0.9)
    report.goal("p99 of the admitted's time to first token, s", percentile(waits, 0.99), at_most=bound)
    report.goal("memory of the last third over the first", max(memory[-third:]) / max(memory[:third]), at_most=1.05)
    report.goal("refusals that are no proper 429 or 503", sum(not is_proper(one) for one in refused), at_most=0)
    report.goal("admitted and not answered whole", sum(not one.is_whole for one in admitted), at_most=0)


async def open_loop(
    arguments: argparse.Namespace,
    server: Server,
    rate: float,
    make: Callable[[int], dict[str, Any]],
    numbers: Iterator[int],
) -> tuple[list[Reply], list[int]]:
    """Poisson arrivals that nobody holds back; the server's resident bytes once a second."""
    replies: list[Reply] = []
    memory: list[int] = []
    idle: list[Caller] = []
    dice, begin = random.Random(7), time.perf_counter()

    async def send() -> None:
        caller = idle.pop() if idle else Caller(server.port)
        replies.append(await caller.ask(make(next(numbers))))
        idle.append(caller)

    due = begin
    async with asyncio.TaskGroup() as group:
        while due < begin + arguments.duration:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(send())
            if time.perf_counter() - begin > len(memory) + 1:
                memory.append(server.memory())
            due += dice.expovariate(rate)
    for caller in idle:
        caller.close()
    return sorted(replies, key=lambda one: one.sent_s), memory


async def tenants(arguments: argparse.Namespace, report: Report) -> None:
    numbers = iter(range(10**9))
    quiet_body = partial(body, arguments, prompt_tokens=arguments.quiet_prompt_tokens)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.jsonl"
        names = ("quiet", "flood")
        hashes = {name: hashlib.sha256(f"sk-{name}".encode()).hexdigest() for name in names}
        keys.write_text("".join(json.dumps({"name": name, "hash": f"sha256:{hashes[name]}"}) + "\n" for name in names))
        with serving(arguments, "--api-keys", str(keys)) as server:
            quiet = Caller(server.port, "sk-quiet")

            async def measure() -> list[float]:
                found: list[float] = []
                for _ in range(arguments.samples + 3):
                    reply = await quiet.ask(quiet_body(next(numbers)))
                    if reply.first_s is None or not reply.is_whole:
                        raise SystemExit(f"the quiet tenant was not answered: {reply}")
                    found.append(reply.first_s - reply.sent_s)
                    await asyncio.sleep(0.05)
                return found[3:]

            alone = await measure()
            callers = [Caller(server.port, "sk-flood") for _ in range(arguments.factor_flood * arguments.rows)]
            flood = asyncio.create_task(closed_loop(callers, partial(body, arguments), float("inf"), numbers))
            await asyncio.sleep(SETTLE_S)
            beside = await measure()
            flood.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flood
    report.details |= {
        "alone_s": {"p50": median(alone), "p95": percentile(alone, 0.95)},
        "beside_a_flood_s": {"p50": median(beside), "p95": percentile(beside, 0.95)},
    }
    report.goal("time to first token beside a flood over alone, p50", median(beside) / median(alone), at_most=2.0)
    ratio = percentile(beside, 0.95) / percentile(alone, 0.95)
    report.goal("the same, p95", ratio, at_most=2.0)


async def streams(arguments: argparse.Namespace, report: Report) -> None:
    with serving(arguments, "--max-waiting", str(4 * arguments.streams)) as server:
        idle = [Caller(server.port) for _ in range(arguments.idle)]
        for caller in idle:
            await caller.get("/health/live")
        begin = time.perf_counter()
        replies = await asyncio.gather(
            *(Caller(server.port).ask(body(arguments, number)) for number in range(arguments.streams))
        )
        seconds = time.perf_counter() - begin
        num_lost = 0
        for caller in idle:
            connection = caller._connection
            try:
                await caller.get("/health/live")
            except (OSError, ProtocolError):
                num_lost += 1
            num_lost += caller._connection is not connection
    bad = [one for one in replies if not one.is_whole or one.num_tokens != arguments.output_tokens]
    report.details |= {
        "seconds": seconds,
        "tokens_per_s": sum(one.num_tokens for one in replies) / seconds,
        "failures": Counter(one.failure or one.body[:200].decode() for one in bad),
    }
    report.goal(f"of {arguments.streams} streams, failed or short", len(bad), at_most=0)
    report.goal(f"of {arguments.idle} idle connections, lost", num_lost, at_most=0)


async def drain(arguments: argparse.Namespace, report: Report) -> None:
    """The same greedy requests undisturbed and while the server ends: in deterministic mode the texts are equal."""
    count = 2 * arguments.rows
    options = ("--deterministic", "--drain", "300")

    async def ask_all(server: Server, then: Callable[[], Awaitable[None]]) -> list[Reply]:
        tasks = [asyncio.create_task(Caller(server.port).ask(body(arguments, number))) for number in range(count)]
        await then()
        return list(await asyncio.gather(*tasks))

    async def nothing() -> None:
        return

    with serving(arguments, *options) as server:
        expected = await ask_all(server, nothing)
    late: list[Reply] = []
    with serving(arguments, *options) as server:

        async def stop() -> None:
            metrics = b""
            while b'state="running"} %d' % arguments.rows not in metrics:  # all are admitted: half run, half wait
                metrics = await Caller(server.port).get("/metrics")
            while b'state="waiting"} %d' % (count - arguments.rows) not in metrics:
                metrics = await Caller(server.port).get("/metrics")
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            late.append(await Caller(server.port).ask(body(arguments, count)))

        found = await ask_all(server, stop)
        code = await asyncio.to_thread(server.process.wait, 60)
    differing = [
        number
        for number, (one, other) in enumerate(zip(expected, found, strict=True))
        if not other.is_whole or other.text != one.text or other.num_tokens != arguments.output_tokens
    ]
    report.details |= {"late": late[0].failure or late[0].status, "failures": [found[one].failure for one in differing]}
    report.goal(f"of {count} admitted streams, those that lost a token", len(differing), at_most=0)
    report.goal("exit status of the server", code, at_most=0)
    report.goal("requests after the signal that were admitted", sum(one.status == 200 for one in late), at_most=0)


class Report:
    """What was measured, beside what it should be."""

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}
        self.goals: list[dict[str, Any]] = []

    def goal(self, name: str, value: float, *, at_least: float = float("-inf"), at_most: float = float("inf")) -> None:
        is_met = at_least <= value <= at_most
        wanted = f"at least {at_least:g}" if at_least > float("-inf") else f"at most {at_most:g}"
        print(f"{'met   ' if is_met else 'missed'} {name}: {value:.4g}, wanted {wanted}")
        self.goals.append({"name": name, "measured": value, "wanted": wanted, "met": is_met})


def cores(text: str) -> set[int]:
    """0-3,8 as a set."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    questions = {"overload": overload, "tenants": tenants, "streams": streams, "drain": drain}
    parser.add_argument("question", choices=questions)
    parser.add_argument("model", nargs="*", metavar="MODEL", help="exported folder (the bundled model)")
    add = parser.add_argument
    add("--server-cores", type=cores, help="as 0-7 (all)")
    add("--client-cores", type=cores, help="as 8-15 (all)")
    add("--rows", type=int, default=16, help="%(default)s")
    add("--waiting", type=int, default=64, help="overload: length of the queue (%(default)s)")
    add("--prompt-tokens", type=int, default=64, help="%(default)s")
    add("--output-tokens", type=int, default=64, help="%(default)s")
    add("--factor", type=float, default=5.0, help="overload: offered over peak (%(default)s)")
    add("--peak-s", type=float, default=30.0, help="overload: seconds of each search for the peak (%(default)s)")
    add("--duration", type=float, default=300.0, help="overload: seconds (%(default)s)")
    add("--samples", type=int, default=100, help="tenants: requests of the quiet one (%(default)s)")
    add("--quiet-prompt-tokens", type=int, default=None, help="tenants: of the quiet one (as the others')")
    add("--factor-flood", type=int, default=8, help="tenants: requests of the other at once, by rows (%(default)s)")
    add("--streams", type=int, default=256, help="streams: active (%(default)s)")
    add("--idle", type=int, default=1000, help="streams: idle connections (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    arguments = parser.parse_args()
    if arguments.client_cores:
        os.sched_setaffinity(0, arguments.client_cores)
    report = Report()
    asyncio.run(questions[arguments.question](arguments, report))
    cpu = cpu_facts()
    machine = {"cpu": cpu.model, "features": cpu.features, "num_cores": cpu.num_usable, "load": os.getloadavg()}
    whole = {"command": sys.argv, "machine": machine, "goals": report.goals, "details": report.details}
    print(json.dumps(report.details, indent=1, default=str))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(whole, indent=1, default=str) + "\n")
    return 0 if all(one["met"] for one in report.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
