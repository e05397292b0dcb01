"""Builds the graph that draws one token per row of logits on a device: the rules of `sampler` in ONNX operators.

Knows no sessions and no requests. Inputs besides `logits` float32 [R, vocab]:

| head | input | type | shape | meaning |
|---|---|---|---|---|
| rules | rule_ids | int64 | [R, H] | ids with a rule; unused places repeat the first |
| | rule_seen, rule_counts, rule_bias | float32 | [R, H] | in prompt or output (1 or 0); in output; added, -inf bans |
| | repetition, frequency, presence | float32 | [R, 1] | penalties |
| masked | masks | bool | [M, tokens] | what a grammar allows; the first allows everything |
| | mask_index | int64 | [R] | which of them is the row's |
| drawn, narrowed | greedy | bool | [R] | the most likely token, whatever the others say |
| | inverse_temperature, min_p | float32 | [R, 1] | |
| | uniform | float64 | [R, 1] | the random number of the position |
| narrowed | top_k | int64 | [R, 1] | 0: off; at most NUM_CANDIDATES |
| | top_p | float64 | [R, 1] | 1: off |

Outputs: `tokens` int64 [R] (NOT_FINITE, UNDECIDED or an id) and, with logprobs, `chosen` float32 [R, 1],
`top_values` float32 and `top_ids` int64 [R, NUM_LOGPROBS].
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

NUM_CANDIDATES = 256  # most likely ids that top-k and top-p look at; CUDA's TopK is ten times slower beyond
NUM_LOGPROBS = 20
NOT_FINITE = -1
UNDECIDED = -2  # top-p keeps more than the candidates: the row must be drawn from all its logits
_SUM_BLOCK = 512  # CUDA's CumSum takes quadratic time, so weights are summed in blocks first
_BOOL, _INT, _FLOAT, _DOUBLE = TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE


class Pick(Enum):
    """How much a step's rows ask of the head; each includes those before it."""

    GREEDY = auto()
    DRAWN = auto()  # temperature, min-p
    NARROWED = auto()  # top-k, top-p


@dataclass(frozen=True, slots=True)
class HeadKind:
    """One variant of the head."""

    pick: Pick
    has_rules: bool
    has_logprobs: bool
    has_masks: bool = False


def sampling_head(kind: HeadKind, *, vocab_size: int, num_tokens: int) -> bytes:
    """The serialized graph. Ids from `num_tokens` on are padding of the embedding and are never drawn."""
    return _Head(vocab_size, num_tokens).build(kind)


class _Head:
    """Collects the nodes of one head."""

    def __init__(self, vocab_size: int, num_tokens: int) -> None:
        self._vocab_size = vocab_size
        self._num_tokens = num_tokens
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs = [helper.make_tensor_value_info("logits", _FLOAT, ["R", vocab_size])]
        self._outputs: list[Any] = []

    def build(self, kind: HeadKind) -> bytes:
        raw = "logits"
        if self._num_tokens < self._vocab_size:
            raw = self._slice(raw, 0, self._num_tokens)
        values = self._with_rules(raw) if kind.has_rules else raw
        if kind.has_masks:
            values = self._masked(values)
        best = self._add("ArgMax", values, axis=1, keepdims=1)  # [R, 1]; of equal values the lowest id
        token = best if kind.pick is Pick.GREEDY else self._draw(values, best, kind.pick)
        # Zero times a sum that is not finite is no number; bans are not looked at.
        health = self._add("Mul", self._sum(raw), self._constant(np.float32(0)))
        token = self._add("Where", self._add("IsNaN", health), self._constant(np.array([[NOT_FINITE]])), token)
        self._nodes.append(helper.make_node("Squeeze", [token, self._axis(1)], ["tokens"]))
        self._output("tokens", _INT, ["R"])
        if kind.has_logprobs:
            self._logprobs(raw, token)
        graph = helper.make_graph(
            self._nodes, "sampling_head", self._inputs, self._outputs, list(self._constants.values())
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
        return bytes(model.SerializeToString())

    def _with_rules(self, raw: str) -> str:
        """Penalties, then bias, then bans, at the ids that have any."""
        ids = self._input("rule_ids", _INT, ["R", "H"])
        seen, counts, bias = (
            self._input(name, _FLOAT, ["R", "H"]) for name in ("rule_seen", "rule_counts", "rule_bias")
        )
        repetition, frequency, presence = (
            self._input(name, _FLOAT, ["R", 1]) for name in ("repetition", "frequency", "presence")
        )
        zero = self._constant(np.float32(0))
        value = self._add("GatherElements", raw, ids, axis=1)
        shrunk = self._add("Div", value, repetition)
        grown = self._add("Mul", value, repetition)
        repeated = self._add("Where", self._add("Greater", value, zero), shrunk, grown)
        value = self._add("Where", self._add("Greater", seen, zero), repeated, value)
        value = self._add("Sub", value, self._add("Mul", counts, frequency))
        occurs = self._add("Cast", self._add("Greater", counts, zero), to=_FLOAT)
        value = self._add("Sub", value, self._add("Mul", occurs, presence))
        value = self._add("Add", value, bias)
        return self._add("ScatterElements", raw, ids, value, axis=1)

    def _masked(self, values: str) -> str:
        """What the row's grammar does not allow is ruled out."""
        masks = self._input("masks", _BOOL, ["M", self._num_tokens])
        allowed = self._add("Gather", masks, self._input("mask_index", _INT, ["R"]), axis=0)
        return self._add("Where", allowed, values, self._constant(np.float32(-np.inf)))

    def _draw(self, values: str, best: str, pick: Pick) -> str:
        greedy = self._add("Unsqueeze", self._input("greedy", _BOOL, ["R"]), self._axis(1))
        inverse = self._input("inverse_temperature", _FLOAT, ["R", 1])
        smallest = self._input("min_p", _FLOAT, ["R", 1])
        uniform = self._input("uniform", _DOUBLE, ["R", 1])
        largest = self._add("GatherElements", values, best, axis=1)
        weights = self._weights(values, largest, inverse)
        token = self._draw_of_all(self._at_least(weights, smallest), uniform)
        if pick is Pick.NARROWED:
            top_k = self._input("top_k", _INT, ["R", 1])
            top_p = self._input("top_p", _DOUBLE, ["R", 1])
            candidates = self._candidates(values, largest, inverse)
            total = self._add("Cast", self._sum(weights), to=_DOUBLE)
            kept, is_open = self._narrowed(candidates[1], total, top_k, top_p)
            narrow = self._draw_of_candidates(candidates[0], self._at_least(kept, smallest), uniform)
            if is_open is not None:
                narrow = self._add("Where", is_open, self._constant(np.array([[UNDECIDED]])), narrow)
            is_narrow = self._add(
                "Or",
                self._add("Greater", top_k, self._constant(np.array(0))),
                self._add("Less", top_p, self._constant(np.float64(1))),
            )
            token = self._add("Where", is_narrow, narrow, token)
        return self._add("Where", greedy, best, token)

    def _draw_of_all(self, weights: str, uniform: str) -> str:
        """Inverse CDF in the order of the ids: first the block, then the place in it."""
        size = min(_SUM_BLOCK, self._num_tokens)
        missing = -self._num_tokens % size
        if missing:
            nothing = self._add("Mul", self._slice(weights, 0, missing), self._constant(np.float32(0)))
            weights = self._add("Concat", weights, nothing, axis=1)
        num_blocks = (self._num_tokens + missing) // size
        blocks = self._add("Reshape", weights, self._constant(np.array([0, num_blocks, size])))
        sums = self._add("Cast", self._add("ReduceSum", blocks, self._axis(2), keepdims=0), to=_DOUBLE)
        reached = self._cumulated(sums)
        target = self._add("Mul", uniform, self._last(reached, num_blocks))
        block = self._locate(reached, target, num_blocks)  # [R, 1]
        before = self._add(
            "Sub",
            self._add("GatherElements", reached, block, axis=1),
            self._add("GatherElements", sums, block, axis=1),
        )
        inner = self._add("Cast", self._add("GatherND", blocks, block, batch_dims=1), to=_DOUBLE)
        place = self._locate(self._cumulated(inner), self._add("Sub", target, before), size)
        return self._add("Add", self._add("Mul", block, self._constant(np.array(size))), place)

    def _candidates(self, values: str, largest: str, inverse: str) -> tuple[str, str]:
        """The most likely ids and their weights, most likely first."""
        top, ids = self._add_many("TopK", [values, self._constant(np.array([self._num_candidates]))], 2, axis=1)
        return ids, self._weights(top, largest, inverse)

    def _narrowed(self, weights: str, total: str, top_k: str, top_p: str) -> tuple[str, str | None]:
        """The candidates' weights, 0 beyond top-k and top-p, and where top-p would keep more than the candidates."""
        count = self._num_candidates
        rank, nothing = self._constant(np.arange(count)[None]), self._constant(np.float32(0))
        is_k = self._add("Greater", top_k, self._constant(np.array(0)))
        limit = self._add("Where", is_k, top_k, self._constant(np.array(count)))
        kept = self._add("Where", self._add("Less", rank, limit), weights, nothing)
        wide = self._add("Cast", kept, to=_DOUBLE)
        reached = self._cumulated(wide)
        mass = self._last(reached, count)
        wanted = self._add("Mul", top_p, self._add("Where", is_k, mass, total))
        inside = self._add("Less", self._add("Sub", reached, wide), wanted)
        inside = self._add("Or", inside, self._constant(np.arange(count)[None] == 0))
        kept = self._add("Where", inside, kept, nothing)
        if count == self._num_tokens:
            return kept, None
        return kept, self._add("And", self._add("Less", mass, wanted), self._add("Not", is_k))

    def _draw_of_candidates(self, ids: str, weights: str, uniform: str) -> str:
        """Inverse CDF through the ids in ascending order, whatever their likelihood; float32 holds them exactly."""
        count = self._num_candidates
        order = self._add("Cast", ids, to=_FLOAT)
        _, by_id = self._add_many("TopK", [order, self._constant(np.array([count]))], 2, axis=1, largest=0)
        sorted_weights = self._add("GatherElements", weights, by_id, axis=1)
        reached = self._cumulated(self._add("Cast", sorted_weights, to=_DOUBLE))
        place = self._locate(reached, self._add("Mul", uniform, self._last(reached, count)), count)
        return self._add("GatherElements", ids, self._add("GatherElements", by_id, place, axis=1), axis=1)

    @property
    def _num_candidates(self) -> int:
        return min(NUM_CANDIDATES, self._num_tokens)

    def _logprobs(self, raw: str, token: str) -> None:
        """Log-softmax of the raw logits, at the token drawn and at the most likely ids."""
        best = self._add("ArgMax", raw, axis=1, keepdims=1)
        largest = self._add("GatherElements", raw, best, axis=1)
        sums = self._sum(self._add("Exp", self._add("Sub", raw, largest)))
        normalizer = self._add("Add", largest, self._add("Log", sums))
        drawn = self._add("Max", token, self._constant(np.array(0)))
        self._nodes.append(
            helper.make_node("Sub", [self._add("GatherElements", raw, drawn, axis=1), normalizer], ["chosen"])
        )
        count = min(NUM_LOGPROBS, self._num_tokens)
        top, ids = self._add_many("TopK", [raw, self._constant(np.array([count]))], 2, axis=1)
        self._nodes.append(helper.make_node("Sub", [top, normalizer], ["top_values"]))
        self._nodes.append(helper.make_node("Identity", [ids], ["top_ids"]))
        self._output("chosen", _FLOAT, ["R", 1])
        self._output("top_values", _FLOAT, ["R", count])
        self._output("top_ids", _INT, ["R", count])

    def _weights(self, values: str, largest: str, inverse: str) -> str:
        return self._add("Exp", self._add("Mul", self._add("Sub", values, largest), inverse))

    def _at_least(self, weights: str, smallest: str) -> str:
        """Weights relative to the largest, which is 1."""
        return self._add(
            "Where", self._add("GreaterOrEqual", weights, smallest), weights, self._constant(np.float32(0))
        )

    def _locate(self, reached: str, target: str, count: int) -> str:
        """The first place whose running sum exceeds `target`; where rounding leaves none, the last one with weight."""
        below = self._count(self._add("LessOrEqual", reached, target))
        last = self._count(self._add("Less", reached, self._last(reached, count)))
        return self._add("Min", below, last)

    def _count(self, wanted: str) -> str:
        return self._add("ReduceSum", self._add("Cast", wanted, to=_INT), self._axis(1), keepdims=1)

    def _cumulated(self, values: str) -> str:
        return self._add("CumSum", values, self._constant(np.array(1)))

    def _sum(self, values: str) -> str:
        return self._add("ReduceSum", values, self._axis(1), keepdims=1)

    def _last(self, values: str, count: int) -> str:
        return self._slice(values, count - 1, count)

    def _slice(self, values: str, begin: int, end: int) -> str:
        return self._add(
            "Slice", values, self._constant(np.array([begin])), self._constant(np.array([end])), self._axis(1)
        )

    def _axis(self, axis: int) -> str:
        return self._constant(np.array([axis]))

    def _input(self, name: str, kind: int, shape: list[str | int]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def _output(self, name: str, kind: int, shape: list[str | int]) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"{array.dtype}.{array.shape}.{sha256(array.tobytes()).hexdigest()[:16]}"
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def _add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self._add_many(kind, list(inputs), 1, **attributes)[0]

    def _add_many(self, kind: str, inputs: list[str], num_outputs: int, **attributes: Any) -> list[str]:
        names = [f"{kind}.{len(self._nodes)}.{place}" for place in range(num_outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names
