"""Graphs of other exporters: padded groups, copied keys and values, and the equalities that hold for ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import DeviceError
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_engine
from ortserve.runtime.padded.batch import MAX_LOGITS, build_padded_batch, form_groups
from ortserve.runtime.padded.runner import PaddedRunner
from ortserve.runtime.padded_graph import Attention, PaddedGraph
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.step import Row, Step
from ortserve.runtime.testing import predict_logits
from tests.runtime.padded_synthetic import PaddedSyntheticModel, load_padded_synthetic_model
from tests.runtime.synthetic import greedy_tokens, run_to_end, whole
from tests.runtime.test_equalities import MAX_CONTEXT, Equalities, run

ATTENTIONS: tuple[Attention, ...] = ("concatenated", "grouped")
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)
VOCAB = 101


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PaddedSyntheticModel]:
    return {
        attention: load_padded_synthetic_model(tmp_path_factory.mktemp(attention), attention, max_context=512)
        for attention in ATTENTIONS
    }


@every_attention
def test_whatever_happens_beside_a_request_its_reply_stays_the_same(
    models: dict[str, PaddedSyntheticModel], attention: str
) -> None:
    run(type("Machine", (Equalities,), {"model": models[attention], "alone": {}, "num_reads": []}), 2)


@every_attention
@pytest.mark.parametrize("chunk", [5, 128])
def test_greedy_replies_follow_the_models_rule(
    models: dict[str, PaddedSyntheticModel], attention: str, chunk: int
) -> None:
    model = models[attention]
    engine = model.engine(model.plan(EngineConfig(max_rows=4, max_context=MAX_CONTEXT, max_chunk_tokens=chunk)))
    sampling = SamplingParams(temperature=0, max_tokens=20)
    requests = [
        Request(f"r{size}", tuple((size * 31 + place * 7) % 100 for place in range(size)), sampling)
        for size in (1, 2, 3, 17, 127, 128, 129, 200)
    ]
    replies = run_to_end(engine, requests)
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, sampling)


@every_attention
def test_logits_are_those_that_were_asked_for_in_the_order_of_the_rows(
    models: dict[str, PaddedSyntheticModel], attention: str
) -> None:
    """A verification, a chunk without logits, decodes of far apart lengths and a prompt that is judged: one step."""
    model = models[attention]
    store = SlotKvStore(model.manifest.kv, num_rows=6, capacity=256, num_host_blocks=0)
    runner = PaddedRunner(model.manifest, model.session, store, max_logit_rows=64)
    texts = [[(7 * slot + 3 * place) % 100 for place in range(90)] for slot in range(6)]
    lengths = (30, 0, 80, 3, 0, 12)

    def row(slot: int, start: int, count: int, num_logits: int, num_silent: int = 0) -> Row:
        tokens = tuple(texts[slot][start : start + count])
        return Row(f"r{slot}", slot, start, tokens, num_logits, num_silent=num_silent)

    runner.run(Step(0, (), tuple(row(slot, 0, length, 0) for slot, length in enumerate(lengths) if length)))
    rows = (
        row(0, 30, 5, 3, num_silent=1),
        row(4, 0, 9, 9),
        row(2, 80, 1, 1),
        row(3, 3, 7, 0),
        row(5, 12, 1, 1),
        row(1, 0, 2, 1),
    )
    found = runner.run(Step(1, (), rows))
    wanted = [
        texts[one.slot][: one.end - one.num_silent - back] for one in rows for back in range(one.num_logits - 1, -1, -1)
    ]
    assert len(found) == len(wanted) == 15
    for logits, tokens in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(logits, predict_logits(tokens))


def _graph(attention: Attention = "concatenated", *, mask: bool = True, positions: bool = True) -> PaddedGraph:
    return PaddedGraph(
        attention,
        "ids",
        "logits",
        *("{layer}",) * 4,
        attention_mask="mask" if mask else None,
        position_ids="places" if positions else None,
    )


def _rows(*sizes: tuple[int, int]) -> tuple[Row, ...]:
    """Rows of so many stored and new tokens."""
    return tuple(Row(f"r{slot}", slot, start, (1,) * count, 1) for slot, (start, count) in enumerate(sizes))


def _groups(rows: tuple[Row, ...], graph: PaddedGraph, vocab_size: int = VOCAB) -> list[set[int]]:
    return [set(group.places) for group in form_groups(rows, graph, vocab_size=vocab_size)]


def test_rows_of_like_lengths_share_a_run() -> None:
    rows = _rows((100, 1), (7, 1), (0, 120), (0, 65), (60, 3), (9_000, 1))
    assert _groups(rows, _graph()) == [{0, 1}, {5}, {4}, {2, 3}]


def test_a_group_s_logits_are_bounded() -> None:
    rows = _rows(*[(0, 100)] * 5)
    assert [len(group) for group in _groups(rows, _graph(), MAX_LOGITS // 200)] == [2, 2, 1]


def test_rows_without_a_mask_or_positions_share_a_run_when_as_much_is_stored() -> None:
    rows = _rows((5, 1), (6, 1), (5, 1))
    assert _groups(rows, _graph(mask=False)) == _groups(rows, _graph(positions=False)) == [{0, 2}, {1}]


def test_grouped_attention_takes_several_tokens_after_stored_ones_of_one_row_only() -> None:
    rows = _rows((5, 3), (6, 3), (0, 3), (0, 4), (5, 1), (0, 1))
    groups = _groups(rows, _graph("grouped", mask=False, positions=False))
    assert sorted(map(sorted, groups)) == [[0], [1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("attention", "mask", "past_begins", "new_begins"),
    [
        ("concatenated", [[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]], (2, 0), (3, 3)),
        ("grouped", [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], (0, 0), (1, 3)),
    ],
)
def test_padding_lies_where_the_attention_wants_it(
    attention: Attention, mask: list[list[int]], past_begins: tuple[int, ...], new_begins: tuple[int, ...]
) -> None:
    (group,) = form_groups(_rows((1, 1), (3, 1)), _graph(), vocab_size=VOCAB)
    group = replace(group, rows=(group.rows[0], replace(group.rows[1], tokens=(1, 2))))
    batch = build_padded_batch(group, _graph(attention))
    assert batch.attention_mask.tolist() == mask
    assert batch.input_ids.tolist() == [[1, 0], [1, 2]]
    assert batch.position_ids.tolist() == [[1, 0], [3, 4]]
    assert batch.last_places.tolist() == [1, 4]
    assert (batch.past_begins, batch.new_begins) == (past_begins, new_begins)


def test_deterministic_mode_is_refused_by_name(models: dict[str, PaddedSyntheticModel]) -> None:
    model = models["concatenated"]
    with pytest.raises(DeviceError, match=r"synthetic was imported, and its rows are padded"):
        open_engine(model.folder, model.manifest, EngineConfig(deterministic=True))


def test_the_outside_of_a_graph_is_read_back(models: dict[str, PaddedSyntheticModel], tmp_path: Path) -> None:
    model = models["grouped"]
    assert read_manifest(model.folder) == model.manifest
    assert model.manifest.padded is not None
    assert model.manifest.padded.attention == "grouped"
