"""So many simultaneous SSE streams against one server: all must complete with every token that was asked for.

python -m tests.bench.many_streams --streams 256 --json out.json
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from dataclasses import asdict

from ortserve.gateway.bench.calibrate import Probe
from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.load import LoadGenerator
from ortserve.gateway.bench.statistics import LevelReport, summarize
from ortserve.gateway.bench.workload import Api, ClosedLoop, Workload, parse_target
from tests.bench.measurement import Goal, finish, script_parser, serving, spread


async def run(url: str, *, num_streams: int, num_rounds: int, num_output_tokens: int) -> list[LevelReport]:
    """Each round sends `num_streams` requests at once and waits for all of them."""
    target = parse_target(url, None)
    with contextlib.closing(Client(target, 600.0)) as client:
        listed = await client.get("/v1/models")
        model = _first_id(listed.body)
        work = Workload(model, Api.CHAT, 64, num_output_tokens, 0, 1.0, seed=3)
        calibration = await Probe(client, target, work).calibrate()
    generator = LoadGenerator(target, calibration.source, 600.0)
    level = ClosedLoop(num_streams, 0, num_streams, None)
    return [summarize(await generator.run(level), num_output_tokens=num_output_tokens) for _ in range(num_rounds)]


def _first_id(body: bytes) -> str:
    import msgspec

    return str(msgspec.json.decode(body)["data"][0]["id"])


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="exported folder (default: the bundled model)")
    parser.add_argument("--streams", type=int, default=256, help="default %(default)s")
    parser.add_argument("--output-tokens", type=int, default=32, help="of each (default %(default)s)")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4 * arguments.streams), hard), hard))
    with serving(*([] if arguments.model is None else [arguments.model]), limit_s=600) as server:
        reports = asyncio.run(
            run(
                server.url,
                num_streams=arguments.streams,
                num_rounds=arguments.rounds,
                num_output_tokens=arguments.output_tokens,
            )
        )
    for report in reports:
        print(
            f"{report.num_completed} of {report.num_requests} complete, {report.num_short} short,"
            f" {report.window_s:.1f} s, {report.output_tokens_per_s:.0f} tokens/s, failures {list(report.failures)}"
        )
    bad = [report.num_requests - report.num_completed + report.num_short for report in reports]
    goal = Goal(f"failed or short of {arguments.streams} streams", spread(bad), at_most=0.0)
    return finish(arguments, [goal], {"levels": [asdict(report) for report in reports]})


if __name__ == "__main__":
    sys.exit(main())
