"""A synthetic model whose next token a short Python function predicts *through the KV cache*. Knows no real weights.

Layer 0 averages, with uniform attention, a value made of token and position over all stored positions; layer 1 averages
token values over the positions whose code (position mod 8) equals the code of the current token. Both averages times
the number of positions they cover are integers, so one swapped row, block or position changes the prediction. Values
also depend on the rotary regime, which `REGIME_ROWS` rows of tables belong to: one block of another changes it too.
The idea is onnxruntime-genai's synthetic paged model (test/python/create/create_synthetic_paged_model.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

from ortserve.runtime.manifest import FORMAT_VERSION, KvLayout, Manifest, manifest_json
from ortserve.runtime.padded_graph import Attention, PaddedGraph

VOCAB_SIZE = 101  # prime: sums reach every token
HEAD_DIM = 8
NUM_CODES = 8
_PARTS = ("key", "value")
REGIME_ROWS = 2**20  # position_ids of one rotary regime; the next one's follow

# Values, keys and queries of both layers; then what each layout does with them; then the prediction.
_BEFORE = """
  position = Mod(position_ids, regime_rows)
  regime = Div(position_ids, regime_rows)
  place = Mod(position, five)
  plain_weight = Add(place, one)
  weight = Add(plain_weight, regime)
  mixed = Mul(input_ids, weight)
  mixed_float = Cast<to = 1>(mixed)
  mixed_column = Reshape(mixed_float, column)
  value_0 = Mul(mixed_column, spread)
  nothing = Sub(value_0, value_0)
  token_float = Cast<to = 1>(input_ids)
  token_column = Reshape(token_float, column)
  value_1 = Mul(token_column, spread)
  position_code = Mod(position, codes)
  token_code = Mod(input_ids, codes)
  key_1 = OneHot(position_code, depth, off_on)
  query_1 = OneHot(token_code, depth, sharp)
  key_scaled = Mul(key_1, spread)
"""
_SLOT_ATTENTION = """
  pad_0 = Gather(value_0, pad_index)
  pad_nothing = Gather(nothing, pad_index)
  attended_0, present_0_key, present_0_value = com.microsoft.GroupQueryAttention<num_heads = 1, kv_num_heads = 1>(
    pad_nothing, pad_nothing, pad_0, past_0_key, past_0_value, seqlens_k, total_length,
    , , , , , , , , , query_lengths)
  pad_key = Gather(key_scaled, pad_index)
  pad_query = Gather(query_1, pad_index)
  pad_value = Gather(value_1, pad_index)
  attended_1, present_1_key, present_1_value = com.microsoft.GroupQueryAttention<num_heads = 1, kv_num_heads = 1,
    scale = 1.0>(pad_query, pad_key, pad_value, past_1_key, past_1_value, seqlens_k, total_length,
    , , , , , , , , , query_lengths)
  flat_0 = Reshape(attended_0, flat)
  flat_1 = Reshape(attended_1, flat)
  packed_0 = Gather(flat_0, unpad_index)
  packed_1 = Gather(flat_1, unpad_index)
"""
_PAGE_ATTENTION = """
  thin_nothing = Cast<to = TYPE>(nothing)
  thin_0 = Cast<to = TYPE>(value_0)
  thin_query = Cast<to = TYPE>(query_1)
  thin_key = Cast<to = TYPE>(key_scaled)
  thin_1 = Cast<to = TYPE>(value_1)
  attended_0, present_0_key, present_0_value = com.microsoft.PagedAttention<num_heads = 1, kv_num_heads = 1>(
    thin_nothing, thin_nothing, thin_0, past_0_key, past_0_value, cumulative_lengths, past_lengths, page_table,
    , , slot_mapping, , , , , , attention_bounds)
  attended_1, present_1_key, present_1_value = com.microsoft.PagedAttention<num_heads = 1, kv_num_heads = 1,
    scale = 1.0>(thin_query, thin_key, thin_1, past_1_key, past_1_value, cumulative_lengths, past_lengths, page_table,
    , , slot_mapping, , , , , , attention_bounds)
  packed_0 = Cast<to = 1>(attended_0)
  packed_1 = Cast<to = 1>(attended_1)
"""
# Rows of padded tokens: flattened before, and the cache made longer. Two ways to attend to it.
_PADDED_BEFORE = """
  input_ids = Reshape(tokens, flat_shape)
  position_ids = Reshape(places, flat_shape)
  both = Shape(tokens)
  num_flat = ReduceProd<keepdims = 0>(both)
  logit_index = Range(zero, num_flat, one)
"""
_CONCATENATED_ATTENTION = """
  row_count = Gather(both, first)
  width = Gather(both, second)
  by_row = Concat<axis = 0>(row_count, one_of, width, depth)
  new_0_key = Reshape(nothing, by_row)
  new_0_value = Reshape(value_0, by_row)
  new_1_key = Reshape(key_scaled, by_row)
  new_1_value = Reshape(value_1, by_row)
  present_0_key = Concat<axis = 2>(past_0_key, new_0_key)
  present_0_value = Concat<axis = 2>(past_0_value, new_0_value)
  present_1_key = Concat<axis = 2>(past_1_key, new_1_key)
  present_1_value = Concat<axis = 2>(past_1_value, new_1_value)
  mask_shape = Shape(mask)
  all_places = Gather(mask_shape, second_scalar)
  width_scalar = Gather(both, second_scalar)
  num_past = Sub(all_places, width_scalar)
  key_place = Range(zero, all_places, one)
  query_place = Range(num_past, all_places, one)
  query_column = Reshape(query_place, column)
  causal = LessOrEqual(key_place, query_column)
  real = Cast<to = 9>(mask)
  real_wide = Unsqueeze(real, middle_axes)
  seen = And(causal, real_wide)
  query_wide = Reshape(query_1, by_row)
  key_0_turned = Transpose<perm = [0, 1, 3, 2]>(present_0_key)
  key_1_turned = Transpose<perm = [0, 1, 3, 2]>(present_1_key)
  scores_0 = MatMul(query_wide, key_0_turned)
  scores_1 = MatMul(query_wide, key_1_turned)
  hidden_0 = Where(seen, scores_0, lowest)
  hidden_1 = Where(seen, scores_1, lowest)
  shares_0 = Softmax<axis = -1>(hidden_0)
  shares_1 = Softmax<axis = -1>(hidden_1)
  attended_0 = MatMul(shares_0, present_0_value)
  attended_1 = MatMul(shares_1, present_1_value)
  packed_0 = Reshape(attended_0, flat)
  packed_1 = Reshape(attended_1, flat)
"""
_GROUPED_ATTENTION = """
  row_count = Gather(both, first)
  width = Gather(both, second)
  by_row = Concat<axis = 0>(row_count, width, depth)
  pad_nothing = Reshape(nothing, by_row)
  pad_0 = Reshape(value_0, by_row)
  pad_key = Reshape(key_scaled, by_row)
  pad_query = Reshape(query_1, by_row)
  pad_value = Reshape(value_1, by_row)
  lengths = ReduceSum<keepdims = 0>(mask, last_axis)
  ends = Sub(lengths, one)
  seqlens_k = Cast<to = 6>(ends)
  mask_shape = Shape(mask)
  all_places = Gather(mask_shape, second_scalar)
  total_length = Cast<to = 6>(all_places)
  attended_0, present_0_key, present_0_value = com.microsoft.GroupQueryAttention<num_heads = 1, kv_num_heads = 1>(
    pad_nothing, pad_nothing, pad_0, past_0_key, past_0_value, seqlens_k, total_length)
  attended_1, present_1_key, present_1_value = com.microsoft.GroupQueryAttention<num_heads = 1, kv_num_heads = 1,
    scale = 1.0>(pad_query, pad_key, pad_value, past_1_key, past_1_value, seqlens_k, total_length)
  packed_0 = Reshape(attended_0, flat)
  packed_1 = Reshape(attended_1, flat)
"""
_PADDED_AFTER = """
  vocab_of = Reshape(vocab, one_of)
  wide_shape = Concat<axis = 0>(both, vocab_of)
  wide_logits = Reshape(logits, wide_shape)
"""
_AFTER = """
  mean_0 = ReduceMean<keepdims = 0>(packed_0, last_axis)
  mean_1 = ReduceMean<keepdims = 0>(packed_1, last_axis)
  count_0 = Add(position, one)
  reach = Sub(position, token_code)
  sevens = Div(reach, codes)
  matching = Add(sevens, one)
  reached = GreaterOrEqual(reach, zero)
  count_1 = Where(reached, matching, count_0)
  count_0_float = Cast<to = 1>(count_0)
  count_1_float = Cast<to = 1>(count_1)
  sum_0 = Mul(mean_0, count_0_float)
  sum_1 = Mul(mean_1, count_1_float)
  whole_0 = Round(sum_0)
  whole_1 = Round(sum_1)
  int_0 = Cast<to = 7>(whole_0)
  int_1 = Cast<to = 7>(whole_1)
  weighted = Mul(int_1, three)
  total = Add(int_0, weighted)
  next = Mod(total, vocab)
  wanted = Gather(next, logit_index)
  wanted_column = Reshape(wanted, column)
  zero_row = Sub(vocab, vocab)
  ids = Range(zero_row, vocab, one)
  distance = Sub(ids, wanted_column)
  wrapped = Mod(distance, vocab)
  far = Cast<to = 1>(wrapped)
  scaled = Mul(far, half)
  logits = Neg(scaled)
"""
_CONSTANTS = f"""
<int64 one = {{1}}, int64 five = {{5}}, int64 codes = {{{NUM_CODES}}}, int64 vocab = {{{VOCAB_SIZE}}},
 int64[1] last_axis = {{-1}}, int64[2] column = {{-1, 1}}, int64[2] flat = {{-1, {HEAD_DIM}}},
 int64 regime_rows = {{{REGIME_ROWS}}},
 int64 three = {{3}}, int64 zero = {{0}}, float[2] sharp = {{0.0, 30.0}}, float[2] off_on = {{0.0, 1.0}},
 int64[1] depth = {{{NUM_CODES}}}, int64[1] flat_shape = {{-1}}, int64[1] first = {{0}}, int64[1] second = {{1}},
 int64[1] one_of = {{1}}, int64 second_scalar = {{1}}, int64[2] middle_axes = {{1, 2}}, float lowest = {{-1e30}},
 float[1, {HEAD_DIM}] spread = {{1, 1, 1, 1, 1, 1, 1, 1}}, float half = {{0.5}}>
"""
_SLOT_INPUTS = """
  int64[T] input_ids, int64[T] position_ids, int32[B] seqlens_k, int32[B] query_lengths, int32 total_length,
  int64[B, S] pad_index, int64[T] unpad_index, int64[L] logit_index,
"""
_PAGE_INPUTS = """
  int64[T] input_ids, int64[T] position_ids, int32[E] cumulative_lengths, int32[B] past_lengths,
  int32[B, M] page_table, int32[T] slot_mapping, int32[3] attention_bounds, int64[L] logit_index,
"""


def _graph(inputs: str, attention: str, cache: str) -> str:
    past = ", ".join(f"{cache} past_{layer}_{part}" for layer in range(2) for part in ("key", "value"))
    return f"""
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
synthetic ({inputs} {past}) => (float[L, {VOCAB_SIZE}] logits, {past.replace("past", "present")})
{_CONSTANTS}
{{{_BEFORE}{attention}{_AFTER}}}
"""


def predict_next(tokens: Sequence[int], regime: int = 0) -> int:
    """The synthetic model's most likely token after `tokens`, in the rotary regime of that number."""
    position = len(tokens) - 1
    total = sum(token * (place % 5 + 1 + regime) for place, token in enumerate(tokens))
    code = tokens[-1] % NUM_CODES
    covered = tokens[code::NUM_CODES] if code <= position else tokens
    return (total + 3 * sum(covered)) % VOCAB_SIZE


def predict_logits(tokens: Sequence[int], regime: int = 0) -> npt.NDArray[np.float32]:
    """[vocab]: zero at the next token, falling by 0.5 with each id above it, around the end."""
    return -0.5 * ((np.arange(VOCAB_SIZE) - predict_next(tokens, regime)) % VOCAB_SIZE).astype(np.float32)


def write_synthetic_model(folder: Path, *, max_context: int = 256, eos_token_ids: tuple[int, ...] = (0,)) -> Manifest:
    """Write graph and manifest into `folder` (made if missing), ready for `open_engine`."""
    graph = _graph(_SLOT_INPUTS, _SLOT_ATTENTION, f"float[B, 1, C, {HEAD_DIM}]")
    kv = KvLayout(kind="slots", num_layers=2, num_kv_heads=1, head_dim=HEAD_DIM, dtype="float32")
    manifest = _manifest(kv, max_context=max_context, eos_token_ids=eos_token_ids)
    return _write(folder, graph, manifest)


def write_paged_synthetic_model(
    folder: Path, *, max_context: int = 256, page_size: int = 16, eos_token_ids: tuple[int, ...] = (0,)
) -> Manifest:
    """The same model in layout "pages", for CUDA or its emulation.

    Sums of float16 values stay whole numbers up to 2048 only: on CUDA keep tokens and contexts small.
    """
    graph = _graph(
        _PAGE_INPUTS,
        _PAGE_ATTENTION.replace("TYPE", str(onnx.TensorProto.FLOAT16)),
        f"float16[N, {page_size}, 1, {HEAD_DIM}]",
    )
    kv = KvLayout("pages", 2, 1, HEAD_DIM, "float16", page_size)
    manifest = replace(_manifest(kv, max_context=max_context, eos_token_ids=eos_token_ids), precision="fp16")
    return _write(folder, graph, replace(manifest, min_onnxruntime="1.31.1"))


def write_padded_synthetic_model(
    folder: Path, attention: Attention, *, max_context: int = 256, eos_token_ids: tuple[int, ...] = (0,)
) -> Manifest:
    """The same model as another exporter would write it, with attention of either kind."""
    attend = _CONCATENATED_ATTENTION if attention == "concatenated" else _GROUPED_ATTENTION
    past = ", ".join(f"float[B, 1, P, {HEAD_DIM}] past_{layer}_{part}" for layer in range(2) for part in _PARTS)
    present = past.replace("past", "present").replace("P,", "A,")
    graph = f"""
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
synthetic (int64[B, S] tokens, int64[B, A] mask, int64[B, S] places, {past})
  => (float[B, S, {VOCAB_SIZE}] wide_logits, {present})
{_CONSTANTS}
{{{_PADDED_BEFORE}{_BEFORE}{attend}{_AFTER}{_PADDED_AFTER}}}
"""
    outside = PaddedGraph(
        attention=attention,
        input_ids="tokens",
        attention_mask="mask",
        position_ids="places",
        logits="wide_logits",
        past_key="past.{layer}.key",
        past_value="past.{layer}.value",
        present_key="present.{layer}.key",
        present_value="present.{layer}.value",
    )
    kv = KvLayout(kind="padded", num_layers=2, num_kv_heads=1, head_dim=HEAD_DIM, dtype="float32")
    manifest = _manifest(kv, max_context=max_context, eos_token_ids=eos_token_ids)
    return _write(folder, graph, replace(manifest, padded=outside))


def _manifest(kv: KvLayout, *, max_context: int, eos_token_ids: tuple[int, ...]) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        name="synthetic",
        family="synthetic",
        precision="fp32",
        digest="synthetic-1",
        graph="model.onnx",
        min_onnxruntime="1.32.0",
        kv=kv,
        hidden_size=HEAD_DIM,
        num_heads=1,
        vocab_size=VOCAB_SIZE,
        num_tokens=VOCAB_SIZE - 1,  # the last id plays the padding of an embedding: it is never drawn
        max_context=max_context,
        eos_token_ids=eos_token_ids,
        bos_token_id=None,
        add_bos=False,
        num_parameters=0,
        weight_bytes=0,
    )


def _write(folder: Path, graph: str, manifest: Manifest) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    model = _with_dotted_names(onnx.parser.parse_model(graph))
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / manifest.graph))
    (folder / "manifest.json").write_bytes(manifest_json(manifest))
    return manifest


def _with_dotted_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rename past_0_key to past.0.key and the like: the text format has no dots in names, the contract has."""

    def dotted(name: str) -> str:
        return re.sub(r"^(past|present)_(\d+)_(key|value)$", r"\1.\2.\3", name)

    for value in (*model.graph.input, *model.graph.output):
        value.name = dotted(value.name)
    for node in model.graph.node:
        node.input[:] = [dotted(name) for name in node.input]
        node.output[:] = [dotted(name) for name in node.output]
    return model
