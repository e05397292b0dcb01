"""Where greedy replies with guesses part from those without, and how near the two likeliest tokens were there.

    ortserve serve DIR --drafter combined &
    python -m tests.bench.near_ties --streams 1,8 --requests 16

In default mode a decode and a verification are computed by different kernels: replies may part where the two likeliest
tokens are as good as equal, and nowhere else. Against `ortserve serve --deterministic` nothing may part at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ortserve.gateway.bench.speculation_work import Work, works


@dataclass(frozen=True, slots=True)
class Reply:
    """Tokens, and at each of them the gap in nats between the two likeliest."""

    tokens: tuple[str, ...]
    gaps: tuple[float, ...]


def ask(client: httpx.Client, work: Work, num_tokens: int, *, guesses: bool) -> Reply:
    """One greedy reply."""
    body: dict[str, Any] = work.fields() | {
        "model": client.get("/v1/models").json()["data"][0]["id"],
        "max_completion_tokens": num_tokens,
        "logprobs": True,
        "top_logprobs": 2,
        "temperature": 0,
    }
    if not guesses:
        body["speculative"] = {"max_draft": 0}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    content = answer.json()["choices"][0]["logprobs"]["content"]
    gaps = [one["top_logprobs"][0]["logprob"] - one["top_logprobs"][1]["logprob"] for one in content]
    return Reply(tuple(one["token"] for one in content), tuple(gaps))


def compare(plain: list[Reply], guessed: list[Reply]) -> dict[str, Any]:
    """Positions up to where a reply parts, and the gap at each parting."""
    num_positions, partings = 0, []
    for one, other in zip(plain, guessed, strict=True):
        length = min(len(one.tokens), len(other.tokens))
        first = next((place for place in range(length) if one.tokens[place] != other.tokens[place]), None)
        if first is None and len(one.tokens) != len(other.tokens):
            first = length  # one of them ended there
        num_positions += length if first is None else first + 1
        if first is not None:
            partings.append(one.gaps[first] if first < len(one.gaps) else other.gaps[first])
    return {
        "replies": len(plain),
        "positions": num_positions,
        "parted": len(partings),
        "share_of_positions": len(partings) / max(num_positions, 1),
        "largest_gap": max(partings, default=0.0),
        "gaps": sorted(round(gap, 4) for gap in partings),
    }


def main() -> None:
    """Arguments; one line for each kind of work and number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--work", default="chat,editing,copying,extraction", type=lambda text: text.split(","))
    parser.add_argument("--streams", default="1,8", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--requests", default=16, type=int)
    parser.add_argument("--tokens", default=96, type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with httpx.Client(base_url=arguments.url, timeout=600) as client:
        for kind in arguments.work:
            asked = works(kind, 7, arguments.requests)
            for streams in arguments.streams:
                with ThreadPoolExecutor(streams) as pool:
                    plain, guessed = (
                        list(pool.map(lambda work: ask(client, work, arguments.tokens, guesses=guesses), asked))  # noqa: B023
                        for guesses in (False, True)
                    )
                name = f"{kind} {streams}"
                found[name] = compare(plain, guessed)
                sys.stdout.write(f"{name:<14} {json.dumps(found[name])}\n")
                sys.stdout.flush()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
