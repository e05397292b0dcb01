"""The small model of drafters: rows that grow and are cut, bounds that hold, tokens chosen as the engine draws them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Lock

import pytest

from ortserve.plugins.small_model import Feed
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import DraftModelError
from ortserve.runtime.opening import open_engine
from ortserve.runtime.request import SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.session import Session
from ortserve.runtime.speculation.small_model import MAX_FEED, DraftModel, load_draft
from ortserve.runtime.testing import predict_logits
from tests.runtime.synthetic import PADDING_ID, SyntheticModel


def small_model(
    synthetic: SyntheticModel, *, num_rows: int = 3, max_context: int = 200, max_tokens: int = 600
) -> DraftModel:
    session = Session(synthetic.folder / synthetic.manifest.graph, num_threads=1)
    return DraftModel(
        synthetic.manifest,
        session,
        num_rows=num_rows,
        max_context=max_context,
        max_tokens=max_tokens,
        num_threads=1,
    )


def most_likely(tokens: tuple[int, ...]) -> int:
    return int(predict_logits(tokens)[:PADDING_ID].argmax())


def test_rows_grow_together_and_are_cut_alone(synthetic: SyntheticModel) -> None:
    model = small_model(synthetic)
    one, two = (5, 6, 7, 8), (9, 10)
    assert model.extend([Feed(0, one), Feed(2, two)]) == [most_likely(one), most_likely(two)]
    # wrong guesses are stored, cut off, and overwritten
    assert model.extend([Feed(0, (99,)), Feed(2, (98, 97), is_wanted=False)]) == [most_likely((*one, 99)), None]
    model.truncate(0, 3)
    model.truncate(2, 2)
    assert model.extend([Feed(2, (4,)), Feed(0, (1, 2))]) == [most_likely((*two, 4)), most_likely((*one[:3], 1, 2))]
    model.truncate(0, 0)
    assert model.extend([Feed(0, two)]) == [most_likely(two)]


def test_a_token_is_drawn_with_the_random_number_of_its_position(synthetic: SyntheticModel) -> None:
    model = small_model(synthetic)
    draw = Draw(SamplingParams(temperature=1.0), 7, 0, 0)
    prompt = (5, 6, 7)
    found = list(prompt)
    feed: tuple[int, ...] = prompt
    for _ in range(12):
        (token,) = model.extend([Feed(0, feed, draw)])
        logits = predict_logits(found)[None]
        assert token == synthetic.sampler.draw(logits, [draw])[0].token_id
        assert token is not None
        found.append(token)
        feed, draw = (token,), draw.after(token)
    assert draw.position == 12


def test_after_keeps_what_the_rules_say() -> None:
    sampling = SamplingParams(min_tokens=2)
    draw = Draw(sampling, 1, 2, 0, banned=(0,))
    assert draw.after(5) == replace(draw, position=1)
    assert draw.after(5).after(6) == replace(draw, position=2, banned=())


def test_bounds_are_kept_and_nothing_is_added(synthetic: SyntheticModel) -> None:
    model = small_model(synthetic, max_context=130, max_tokens=140)
    model.extend([Feed(0, (1,) * 100, is_wanted=False)])
    for feeds, words in (
        ([Feed(0, (1,) * 31)], "exceed its 130 tokens"),
        ([Feed(1, (1,) * 41)], "140 tokens together"),
        ([Feed(1, (1,) * (MAX_FEED + 1))], "from 1 to 128"),
        ([Feed(1, ())], "from 1 to 128"),
        ([Feed(3, (1,))], "no row 3"),
        ([Feed(1, (1,)), Feed(1, (2,))], "twice"),
    ):
        with pytest.raises(ValueError, match=words):
            model.extend(feeds)
    with pytest.raises(ValueError, match="cannot be cut to 101"):
        model.truncate(0, 101)
    prompt = (1,) * 100
    assert model.extend([Feed(0, (2,)), Feed(1, (3,) * 30)]) == [most_likely((*prompt, 2)), most_likely((3,) * 30)]
    assert model.extend([]) == []


def write_tokenizer(folder: Path, words: list[str]) -> None:
    vocab = {word: place for place, word in enumerate(words)}
    added = [{"id": 0, "content": words[0]}]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))


@pytest.fixture
def folders(synthetic: SyntheticModel, tmp_path: Path) -> tuple[Path, Path]:
    for name in ("served", "draft"):
        shutil.copytree(synthetic.folder, tmp_path / name)
        write_tokenizer(tmp_path / name, [f"w{number}" for number in range(PADDING_ID)])
    return tmp_path / "served", tmp_path / "draft"


def test_a_model_of_other_tokens_is_refused(synthetic: SyntheticModel, folders: tuple[Path, Path]) -> None:
    served, draft = folders
    manifest = synthetic.manifest

    def load() -> None:
        load_draft(draft, served, manifest, num_threads=1, turn=Lock())

    load()
    content = json.loads((draft / "tokenizer.json").read_text())
    (draft / "tokenizer.json").write_text(json.dumps(content | {"normalizer": None}))  # says the same in other bytes
    load()
    write_tokenizer(draft, [f"w{number}" for number in range(PADDING_ID - 1)] + ["other"])
    with pytest.raises(DraftModelError, match="token 99 is 'w99' to synthetic and 'other' to the small model"):
        load()
    (draft / "tokenizer.json").write_text("{")
    with pytest.raises(DraftModelError, match="cannot be read"):
        load()
    (draft / "tokenizer.json").unlink()
    with pytest.raises(DraftModelError, match=r"no readable tokenizer.json"):
        load()
    with pytest.raises(DraftModelError, match="has 100 tokens and synthetic has 50"):
        load_draft(draft, served, replace(manifest, num_tokens=50), num_threads=1, turn=Lock())


def test_its_memory_is_in_the_plan(synthetic: SyntheticModel, folders: tuple[Path, Path]) -> None:
    served, draft = folders
    config = EngineConfig(max_rows=2, max_context=128, kv_memory=2**20, drafter="model", draft_model=str(draft))
    engine, plan = open_engine(served, synthetic.manifest, config)
    engine.close()
    _, without = open_engine(served, synthetic.manifest, replace(config, drafter="none"))
    layout = synthetic.manifest.kv
    assert without.drafter_bytes == 0
    assert plan.drafter_bytes - plan.drafter_keep_bytes == plan.resident_tokens * (512 + layout.bytes_per_token)
    assert f"drafter {plan.drafter_bytes / 2**20:.1f} MiB" in str(plan)
