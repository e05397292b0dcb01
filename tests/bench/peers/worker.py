"""Runs a peer that has no server in this process: one line of JSON in for each batch, one out. Knows no ortserve.

Started by `cpu_peers.py` with the peer's own interpreter. A request's deliveries are noted where its library hands them
over: no HTTP and no text, which is to the peer's advantage.

  python worker.py openvino FOLDER --rows 16 --context 2048 --threads 2
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

KILOBYTE = 1024


class Batch:
    """Requests of one line with when their tokens came."""

    def __init__(self, asks: list[dict[str, Any]]) -> None:
        self.asks = asks
        self.sent = [0.0] * len(asks)
        self.arrivals: list[list[float]] = [[] for _ in asks]
        self.tokens: list[list[int]] = [[] for _ in asks]

    def deliver(self, index: int, tokens: list[int], now: float) -> None:
        if tokens:
            self.arrivals[index].append(now)
            self.tokens[index] += tokens

    def due(self, index: int) -> bool:
        return bool(len(self.arrivals[0]) >= self.asks[index]["after"])

    def reply(self) -> dict[str, Any]:
        return {"sent": self.sent, "arrivals": self.arrivals, "tokens": self.tokens}


class Peer(Protocol):
    """A library that generates."""

    def run(self, batch: Batch, *, guesses: bool) -> None:
        """All of them to their end. Raises `ValueError` for what it cannot do."""


class OpenVino:
    """`ContinuousBatchingPipeline`, which its model server stands on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import openvino_genai as genai

        self._genai = genai
        config = genai.SchedulerConfig()
        config.max_num_seqs = arguments.rows
        config.max_num_batched_tokens = arguments.chunk
        config.dynamic_split_fuse = True
        config.enable_prefix_caching = True
        config.cache_size = arguments.cache_gigabytes
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": arguments.threads, "PERFORMANCE_HINT": "LATENCY"}
        if arguments.kv:
            properties["KV_CACHE_PRECISION"] = arguments.kv
        if arguments.guesses:
            properties["prompt_lookup"] = True
        if arguments.small:
            properties["draft_model"] = genai.draft_model(str(arguments.small), "CPU")
        self._lookup, self._num_guesses = arguments.guesses, arguments.num_guesses
        self._pipeline = genai.ContinuousBatchingPipeline(str(arguments.folder), config, "CPU", properties)
        self._next = 0

    def run(self, batch: Batch, *, guesses: bool) -> None:
        """Adds what is due between steps."""
        import openvino

        handles: dict[int, Any] = {}
        waiting = list(range(len(batch.asks)))
        while waiting or self._pipeline.has_non_finished_requests():
            for index in [one for one in waiting if batch.due(one)]:
                ask = batch.asks[index]
                batch.sent[index] = perf_counter()
                ids = openvino.Tensor(np.array([ask["prompt"]], np.int64))
                handles[index] = self._pipeline.add_request(self._next, ids, self._options(ask, guesses=guesses))
                self._next += 1
                waiting.remove(index)
            self._pipeline.step()
            now = perf_counter()
            for index, handle in handles.items():
                while handle.can_read():
                    for output in handle.read().values():
                        batch.deliver(index, list(output.generated_ids), now)

    def _options(self, ask: dict[str, Any], *, guesses: bool) -> Any:
        options = self._genai.GenerationConfig()
        options.do_sample = False
        options.max_new_tokens = ask["num_tokens"]
        options.ignore_eos = ask["ignore_eos"]
        options.eos_token_id = 2
        if not ask["ignore_eos"]:
            options.stop_token_ids = {2}
        if guesses:
            options.num_assistant_tokens = self._num_guesses
            if self._lookup:
                options.max_ngram_size = 3
        return options


class Genai:
    """onnxruntime-genai's `Generator`: a batch that begins and ends together, prompts of one length."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        config = genai.Config(str(arguments.folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {
            "intra_op_num_threads": arguments.threads}}}}))  # fmt: skip
        self._model = genai.Model(config)

    def run(self, batch: Batch, *, guesses: bool) -> None:
        """Raises `ValueError` where a request must begin later than others, or lengths differ."""
        prompts = [ask["prompt"] for ask in batch.asks]
        lengths = {(len(ask["prompt"]), ask["num_tokens"]) for ask in batch.asks}
        if guesses or len(lengths) > 1 or any(ask["after"] for ask in batch.asks):
            raise ValueError("its batches begin together, and it has no guesses on the CPU")
        ((length, num_tokens),) = lengths
        options = self._genai.GeneratorParams(self._model)
        shortest = length + num_tokens if batch.asks[0]["ignore_eos"] else 0
        options.set_search_options(
            batch_size=len(prompts), max_length=length + num_tokens, min_length=shortest, do_sample=False
        )
        batch.sent = [perf_counter()] * len(prompts)
        generator = self._genai.Generator(self._model, options)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(num_tokens):
            if generator.is_done():
                break
            generator.generate_next_token()
            tokens, now = generator.get_next_tokens(), perf_counter()
            for index, token in enumerate(tokens):
                batch.deliver(index, [int(token)], now)


def memory() -> dict[str, int]:
    """Proportional and anonymous bytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * KILOBYTE for name, _, rest in (line.partition(":") for line in lines)}
    return {"proportional": sizes["Pss"], "anonymous": sizes["Anonymous"]}


def main() -> None:
    """Answers lines until there are no more; the first line out says that the model is loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("openvino", "genai"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=256, help="openvino: most tokens of a step")
    parser.add_argument("--cache-gigabytes", type=int, default=1, help="openvino: of its KV cache")
    parser.add_argument("--kv", help="openvino: precision of keys and values")
    parser.add_argument("--guesses", action="store_true", help="openvino: prompt lookup")
    parser.add_argument("--small", type=Path, help="openvino: a small model that guesses")
    parser.add_argument("--num-guesses", type=int, default=5, help="openvino: most guesses of a step")
    arguments = parser.parse_args()
    peer: Peer = OpenVino(arguments) if arguments.peer == "openvino" else Genai(arguments)
    out = sys.stdout
    out.write(json.dumps(memory()) + "\n")
    out.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "memory":
            answer: dict[str, Any] = memory()
        else:
            batch = Batch(asked)
            try:
                peer.run(batch, guesses=arguments.guesses or arguments.small is not None)
                answer = batch.reply()
            except Exception as error:  # whatever the library raises is the answer
                answer = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
