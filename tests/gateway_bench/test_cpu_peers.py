"""What the comparison of servers measures, and the checkpoint that it gives llama.cpp; the peers are not run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ortserve.export.open_source import open_source
from ortserve.export.publish import export_checkpoint
from tests.bench.cpu_peers import GUESSES, PARTS, Found, Parts, chosen, quiet_figures
from tests.bench.peers.models import NotMadeError, Tools, fill_zeros, pad_vocabulary, write_llama
from tests.bench.peers.quiet import Watch, family, others_seconds
from tests.bench.peers.roster import ROSTER
from tests.bench.peers.sides import Side, SideError, Worker
from tests.bench.peers.work import Ask, Prompts, Timeline, decode_rate, interference_figures, latency_p95, whole_rate
from tests.export.checkpoints import Tiny, write_checkpoint


def reply(first: float, gap: float, count: int, *, each: int = 1, sent: float = 0.0) -> Timeline:
    return Timeline(sent, tuple(first + gap * index for index in range(count)), count * each, "")


def test_streams_are_counted_while_all_of_them_decode() -> None:
    replies = [reply(1.0, 0.1, 31), reply(2.0, 0.1, 41)]  # all decode from 2 to 4
    assert decode_rate(replies) == pytest.approx(20, rel=0.06)
    assert decode_rate([reply(1.0, 0.1, 31, each=3)]) == pytest.approx(30)
    assert whole_rate(replies) == pytest.approx(72 / 6)
    with pytest.raises(ValueError, match="more tokens"):
        decode_rate([reply(0.0, 0.1, 5), reply(9.0, 0.1, 5)])


def test_a_stall_beside_a_long_prompt_is_seen_also_where_it_outlasts_it() -> None:
    stalled = Timeline(0.0, (1.0, 1.1, 1.2, 5.0, 5.1), 5, "")
    assert latency_p95([stalled], 1.25, 4.9) == pytest.approx(3.8)
    figures = dict(interference_figures([stalled, Timeline(1.25, (4.9,), 1, "")]))
    assert next(value for name, value in figures.items() if "median before" in name) == pytest.approx(100)
    assert next(value for name, value in figures.items() if "TTFT" in name) == pytest.approx(3650)


def test_every_side_of_a_round_is_asked_the_same_and_no_round_the_same_again() -> None:
    first, again, other = (Prompts(seed, 2042).draw(64) for seed in (1, 1, 2))
    assert first == again != other
    assert Prompts(1, 2042).draw(9)[0] >= 300


def test_ratios_are_of_rounds_that_both_have_and_a_side_without_a_figure_is_not_run() -> None:
    found = Found()
    for side, number, value in (("ours", 0, 10.0), ("ours", 1, 30.0), ("peer", 1, 15.0)):
        found.add("tokens/s", side, number, value)
    ratio = found.ratio("tokens/s", "ours", "peer")
    assert ratio is not None
    assert (ratio.median, ratio.count) == (2.0, 1)
    found.not_run["third"] = "no interpreter"
    lines = list(found.table(["ours", "peer", "third"]))
    assert "15 (15 to 15, 1) [2.00] | not run |" in lines[2]
    assert lines[-1] == "not run: third: no interpreter"


LIBRARY = """
import json, sys
print("a line of the library's own")
print(json.dumps({"proportional": 1, "anonymous": 1}), flush=True)
for line in sys.stdin:
    asks = json.loads(line)
    if asks == "memory":
        print(json.dumps({"proportional": 7, "anonymous": 5}), flush=True)
    elif len(asks) > 1:
        print(json.dumps({"error": "ValueError: one at a time"}), flush=True)
    else:
        print(json.dumps({"sent": [1.0], "arrivals": [[2.0, 3.0]], "tokens": [[0, 1]]}), flush=True)
"""


def test_a_worker_answers_in_lines_and_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "library.py"
    script.write_text(LIBRARY)
    monkeypatch.setattr("tests.bench.peers.sides.WORKER", script)
    worker = Worker([sys.executable], {}, Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    try:
        assert worker.run([Ask((1,), 2)]) == [Timeline(1.0, (2.0, 3.0), 2, "a b")]
        assert worker.memory() == (7, 5)
        with pytest.raises(SideError, match="one at a time"):
            worker.run([Ask((1,), 2)] * 2)
    finally:
        worker.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """With a tokenizer of fewer tokens than rows, as a widened checkpoint has."""
    folder = write_checkpoint(tmp_path / "tiny", Tiny(hidden_size=64, intermediate_size=96, head_dim=16, dtype="BF16"))
    tokenizer = Tokenizer(models.BPE({"<end>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_llama_as_gguf_is_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    write_llama(tiny, tmp_path / "tiny.gguf")
    for name, source in (("gguf", tmp_path / "tiny.gguf"), ("folder", tiny)):
        with open_source(source) as checkpoint:
            export_checkpoint(checkpoint, tmp_path / name, precision="fp32", progress=False, verify=False)
    graphs = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("gguf", "folder")]
    assert graphs[0] == graphs[1]


def test_another_model_than_llama_is_not_written(tmp_path: Path) -> None:
    qwen = write_checkpoint(tmp_path / "qwen", Tiny(architecture="Qwen2ForCausalLM", biases=True))
    with pytest.raises(NotMadeError, match="only Llama"):
        write_llama(qwen, tmp_path / "file")


def test_zeros_alone_become_noise_that_differs(tiny: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    outputs = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 1)]
    save_file({**tensors, **{name: np.zeros_like(tensors[name]) for name in outputs}}, tiny / "model.safetensors")
    fill_zeros(tiny, tmp_path / "filled")
    filled = load_file(tmp_path / "filled" / "model.safetensors")
    first, second = (filled.pop(name).astype(np.float32) for name in outputs)
    assert 0 < np.abs(first).max() < 1e-5
    assert not np.array_equal(first, second)
    assert all(np.array_equal(values, tensors[name]) for name, values in filled.items())


def test_a_form_whose_tools_are_not_there_says_so(tiny: Path, tmp_path: Path) -> None:
    tools = Tools(tiny, tmp_path, None, tmp_path / "nowhere", None)
    for form, reason in (("gguf-q8_0.gguf", "llama.cpp"), ("genai-int4", "there is no"), ("openvino-int8", "optimum")):
        with pytest.raises(NotMadeError, match=reason):
            tools.make(form)


def test_a_small_model_gets_rows_for_all_ids_of_the_large_one_and_its_tokenizer(tiny: Path, tmp_path: Path) -> None:
    large = shutil.copytree(tiny, tmp_path / "large")
    config = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 7}))
    pad_vocabulary(tiny, large, tmp_path / "padded")
    name = "model.embed_tokens.weight"
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, tmp_path / "padded"))
    rows = len(before[name])
    assert after[name].shape == (rows + 7, before[name].shape[1])
    assert np.array_equal(after[name][:rows], before[name])
    assert not after[name][rows:].any()
    assert all(np.array_equal(values, after[other]) for other, values in before.items() if other != name)
    assert json.loads((tmp_path / "padded" / "config.json").read_text()) == config | {"vocab_size": rows + 7}
    assert (tmp_path / "padded" / "tokenizer.json").read_bytes() == (large / "tokenizer.json").read_bytes()


def test_sides_are_chosen_with_guesses_or_without(tmp_path: Path) -> None:
    choose = chosen(ROSTER, GUESSES)
    assert choose("ours-int8,ours-int8+drafts,llama-q8_0+small") == [
        "ours-int8",
        "ours-int8+drafts",
        "llama-q8_0+small",
    ]
    for wrong in ("ours", "ours-int8+", "ours-int8+other", "+drafts"):
        with pytest.raises(argparse.ArgumentTypeError, match="is unknown: choose from ours-int8"):
            choose(wrong)
    tools = Tools(tmp_path, tmp_path, None, None, None)
    (tmp_path / "gguf-small.gguf").touch()
    llama = ROSTER["llama-q8_0"]
    assert llama.guessing("", tools) == ""
    assert "ngram-simple" in llama.guessing("drafts", tools)
    assert f"-md {tmp_path / 'gguf-small.gguf'}" in llama.guessing("small", tools)
    with pytest.raises(SideError, match="no such guesses"):
        ROSTER["genai-int8"].guessing("drafts", tools)


BURNS = """
import os, sys, time
if "orphan" in sys.argv and os.fork():
    os._exit(0)  # whose child is nobody's child then
while time.process_time() < 0.3:
    pass
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["child", "orphan"])
def test_a_child_is_not_others_and_a_stranger_is(kind: str) -> None:
    before = others_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", BURNS, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        busy = int(child.stdout.readline())  # it has used its processor time and lives
        assert (busy in family(os.getpid())) == (kind == "child")
        if kind == "orphan":
            assert others_seconds() - before >= 0.2


def test_a_figure_that_others_disturbed_is_measured_again_and_does_not_count_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = iter([0.5, 0.0, 0.02, 0.7])
    asked: list[int] = []

    def figures(parts: Parts) -> Iterator[tuple[str, float]]:
        asked.append(parts.number)
        yield "first", float(len(asked))
        yield "second", float(10 * len(asked))

    monkeypatch.setitem(PARTS, "decode", figures)
    monkeypatch.setattr(Watch, "look", lambda watch: next(shares))
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    found = quiet_figures(cast(Side, None), "decode", 4, tokenizer)
    assert found == {"first": (0.02, 2.0), "second": (0.0, 10.0)}
    assert len(set(asked)) == 2  # with other prompts
