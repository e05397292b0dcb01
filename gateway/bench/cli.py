"""`ortserve bench`: reads its options, calibrates, runs the levels and writes the reports. Knows no statistics."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
from pathlib import Path

from ortserve.gateway.bench.calibrate import Calibration, Probe
from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.load import LoadGenerator
from ortserve.gateway.bench.options import DEFAULT_URL, count, counts, positive, rates, served_model, temperature, whole
from ortserve.gateway.bench.plot import check_plot, write_plot
from ortserve.gateway.bench.report import BenchReport, build_report, report_json, write_table
from ortserve.gateway.bench.statistics import LevelReport, summarize
from ortserve.gateway.bench.workload import Api, BenchError, ClosedLoop, Level, OpenLoop, Target, Workload, parse_target

DESCRIPTION = """Measure an OpenAI-compatible server over HTTP: time to first token, inter-token latency, throughput.

Closed loop (--concurrency): so many requests are always running. Open loop (--rate): requests arrive at random at
that rate whether or not the server keeps up. Prompts have an exact number of tokens as the server counts them."""

EXAMPLE = """example:
  ortserve bench --url http://127.0.0.1:8000 --concurrency 1,8,16 --prompt-tokens 128 --output-tokens 64 --json out.json

exit status: 0 all requests completed, 1 some failed, 2 bad usage or the server cannot be reached"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ortserve bench`."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    where = parser.add_argument_group("server")
    where.add_argument("--url", default=DEFAULT_URL, help=f"address, with or without /v1 (default {DEFAULT_URL})")
    where.add_argument("--model", help="name, or path it is served from (default: the first listed)")
    where.add_argument(
        "--api", type=Api, choices=list(Api), default=Api.COMPLETIONS, help="endpoint (default %(default)s)"
    )
    where.add_argument("--api-key", default=os.environ.get("ORTSERVE_API_KEY"), help="default: ORTSERVE_API_KEY")
    where.add_argument("--timeout", type=positive, default=600.0, metavar="S", help="per request (default %(default)g)")
    load = parser.add_argument_group("load")
    shape = load.add_mutually_exclusive_group()
    shape.add_argument("--concurrency", type=counts, metavar="N,N", help="requests at once, one level each (default 1)")
    shape.add_argument("--rate", type=rates, metavar="R,R", help="requests per second on average, one level each")
    length = load.add_mutually_exclusive_group()
    length.add_argument(
        "--requests", type=count, metavar="N", help="per level (default 4 per concurrent request, or 32)"
    )
    length.add_argument(
        "--duration", type=positive, metavar="S", help="seconds per level instead of a number of requests"
    )
    load.add_argument(
        "--warmup", type=whole, default=1, metavar="N", help="per worker, not counted (default %(default)s)"
    )
    work = parser.add_argument_group("requests")
    work.add_argument("--prompt-tokens", type=count, default=128, metavar="N", help="default %(default)s")
    work.add_argument("--output-tokens", type=count, default=64, metavar="N", help="default %(default)s")
    work.add_argument("--shared-prefix-tokens", type=whole, default=0, metavar="N", help="of the prompt, equal in all")
    work.add_argument("--temperature", type=temperature, default=0.0, help="default %(default)g")
    work.add_argument("--seed", type=whole, help="of prompts and arrivals (default: another one each time)")
    reports = parser.add_argument_group("reports")
    reports.add_argument("--json", type=Path, metavar="FILE", help="write everything measured; - is standard output")
    reports.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (needs the extra `plot`)")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark. Raises `BenchError` for bad usage or a server that cannot be measured."""
    target = parse_target(arguments.url, arguments.api_key)
    levels = _levels(arguments)
    if arguments.shared_prefix_tokens >= arguments.prompt_tokens:
        raise BenchError("--shared-prefix-tokens must be below --prompt-tokens: something must differ")
    if arguments.plot is not None:
        check_plot(arguments.plot)
    report = asyncio.run(_measure(arguments, target, levels))
    if arguments.json is not None:
        _write_json(report, arguments.json)
    if arguments.plot is not None:
        write_plot(report, arguments.plot)
    if arguments.json != Path("-"):
        write_table(report, sys.stdout)
    return 1 if any(level.failures for level in report.levels) else 0


async def _measure(arguments: argparse.Namespace, target: Target, levels: list[Level]) -> BenchReport:
    with contextlib.closing(Client(target, arguments.timeout)) as client:
        workload = Workload(
            model=await served_model(client, target, arguments.model),
            api=arguments.api,
            num_prompt_tokens=arguments.prompt_tokens,
            num_output_tokens=arguments.output_tokens,
            num_shared_tokens=arguments.shared_prefix_tokens,
            temperature=arguments.temperature,
            seed=secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed,
        )
        calibration = await Probe(client, target, workload).calibrate()
    reports = await _run_levels(target, workload, calibration, levels, arguments.timeout)
    return build_report(target, workload, calibration, reports)


async def _run_levels(
    target: Target, workload: Workload, calibration: Calibration, levels: list[Level], timeout_s: float
) -> tuple[LevelReport, ...]:
    generator = LoadGenerator(target, calibration.source, timeout_s)
    reports: list[LevelReport] = []
    for level in levels:
        report = summarize(await generator.run(level), num_output_tokens=workload.num_output_tokens)
        name = f"concurrency {level.concurrency}" if isinstance(level, ClosedLoop) else f"{level.rate:g} requests/s"
        sys.stderr.write(
            f"{name}: {report.num_completed} of {report.num_requests} requests in {report.window_s:.1f} s,"
            f" {report.output_tokens_per_s:.1f} output tokens/s\n"
        )
        reports.append(report)
    return tuple(reports)


def _levels(arguments: argparse.Namespace) -> list[Level]:
    warmup, duration = arguments.warmup, arguments.duration
    if arguments.rate is not None:
        number = None if duration is not None else (arguments.requests or 32)
        return [OpenLoop(rate, warmup, number, duration) for rate in arguments.rate]
    return [
        ClosedLoop(
            concurrency, warmup, None if duration is not None else arguments.requests or 4 * concurrency, duration
        )
        for concurrency in arguments.concurrency or [1]
    ]


def _write_json(report: BenchReport, path: Path) -> None:
    data = report_json(report)
    if path == Path("-"):
        sys.stdout.write(data.decode())
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BenchError(f"--json {path}: {error.strerror}") from None
