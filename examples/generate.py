"""Generate token ids in this process, without a server: whole replies, a stream, and a cancelled one.

    ortserve export SRC DST                       # once: a checkpoint folder or hub id becomes an exported folder
    python examples/generate.py DST 1 17 4        # the prompt as token ids

Knows no text: a tokenizer's ids go in and come out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ortserve import runtime
from ortserve.runtime.errors import OrtserveError


def generate(model: runtime.Model, prompt: Sequence[int], max_tokens: int) -> None:
    """A whole reply at once: greedy, so the same every time."""
    reply = model.generate(prompt, runtime.SamplingParams(temperature=0, max_tokens=max_tokens))
    print("greedy:", *reply.token_ids, f"({reply.finish}, {reply.usage.total_s * 1000:.0f} ms)")


def stream(model: runtime.Model, prompt: Sequence[int], max_tokens: int) -> None:
    """Tokens as they come, drawn at random but by a seed; with each the logarithm of its probability."""
    sampling = runtime.SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=max_tokens, num_logprobs=0)
    print("drawn:", end="", flush=True)
    for delta in model.stream(prompt, sampling):
        for entry in delta.logprobs:
            print(f" {entry.token_id} ({entry.logprob:.2f})", end="", flush=True)
        if delta.usage is not None:
            print(f" ({delta.finish}, first token after {delta.usage.time_to_first_token_s * 1000:.0f} ms)")


def cancel(model: runtime.Model, prompt: Sequence[int]) -> None:
    """Leaving the `with` block ends the request; another thread would call `model.cancel(id)`."""
    tokens: list[int] = []
    sampling = runtime.SamplingParams(temperature=0, ignore_eos=True)  # would go on until the context is full
    with model.stream(prompt, sampling, request_id="to be cancelled") as deltas:
        for delta in deltas:
            tokens += delta.token_ids
            if len(tokens) >= 3 or delta.finish is not None:
                break
    print("cancelled after:", *tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate token ids with an exported model.")
    parser.add_argument("folder", help="an exported folder (ortserve export SRC DST)")
    parser.add_argument("prompt", type=int, nargs="+", help="token ids")
    parser.add_argument("--max-tokens", type=int, default=16, help="default: 16")
    options = parser.parse_args(arguments)
    try:
        with runtime.open(options.folder) as model:
            print("model:", model.manifest.name, f"({model.plan})")
            generate(model, options.prompt, options.max_tokens)
            stream(model, options.prompt, options.max_tokens)
            cancel(model, options.prompt)
    except OrtserveError as error:  # every deliberate error is one line that says what to do
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
