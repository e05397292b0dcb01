"""One planted error in the graph of a family, and the proof fails: a wrong export is never called proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ortserve.export import publish
from ortserve.export.architecture import (
    Architecture,
    Attention,
    DynamicScaling,
    Experts,
    Layer,
    Linear,
    LinearScaling,
    Mlp,
    Norm,
    QueryKeyNorm,
    Rope,
    YarnScaling,
)
from ortserve.export.errors import CheckFailedError
from ortserve.export.families import read_architecture
from ortserve.export.graph import attention as attention_module
from ortserve.export.graph.matrix import multiply
from ortserve.export.graph.rope import rotary_tables
from ortserve.export.proof.verify import check_parity
from ortserve.export.recipes import planned
from ortserve.export.recipes.quantize import quantize_int8_rows
from ortserve.export.sources.checkpoint import open_checkpoint
from ortserve.gateway.served.verified import check_verified
from ortserve.runtime.errors import UnverifiedError
from ortserve.runtime.report import read_report
from tests.export.command_line import run_verb
from tests.export.family_checkpoints import BLOCK_SIZE, MAX_CONTEXT, NAMES, copy_family, every_family

Plant = Callable[[Architecture], Architecture]
every_precision = pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
Tables = tuple[NDArray[np.float32], NDArray[np.float32]]


def _prove(folder: Path, family: str, monkeypatch: pytest.MonkeyPatch, plant: Plant, precision: str = "fp32") -> bool:
    """Export what `plant` makes of the right architecture; prove it against the right one."""
    source = copy_family(family, folder / "source")
    right = read_architecture(open_checkpoint(source))
    wrong = plant(right)
    monkeypatch.setattr(planned, "read_architecture", lambda checkpoint: wrong)
    manifest = publish.export_checkpoint(
        source,
        folder / "out",
        precision=precision,
        block_size=BLOCK_SIZE if precision == "int4" else None,
        max_context=MAX_CONTEXT,
        verify=False,
    )
    try:
        return check_parity(folder / "out", manifest, right, open_checkpoint(source)).passed
    except CheckFailedError:  # a value that the graph should store is not there
        return False


def _layers(change: Callable[[Layer], Layer]) -> Plant:
    return lambda architecture: replace(architecture, layers=tuple(change(layer) for layer in architecture.layers))


def _attentions(change: Callable[[Attention], Attention]) -> Plant:
    return _layers(lambda layer: replace(layer, attention=change(layer.attention)))


def _mlps(change: Callable[[Mlp], Mlp]) -> Plant:
    return _layers(lambda layer: replace(layer, mlp=change(layer.mlp)) if isinstance(layer.mlp, Mlp) else layer)


def _experts(change: Callable[[Experts], Experts]) -> Plant:
    return _layers(lambda layer: replace(layer, mlp=change(layer.mlp)) if isinstance(layer.mlp, Experts) else layer)


def _fields(**fields: Any) -> Plant:
    return lambda architecture: replace(architecture, **fields)


def _rope(**fields: Any) -> Plant:
    def change(attention: Attention) -> Attention:
        return attention if attention.rope is None else replace(attention, rope=replace(attention.rope, **fields))

    return _attentions(change)


def _without_offset(norm: Norm | None) -> Norm | None:
    return None if norm is None else replace(norm, offset=0.0)


def _shorter_window(attention: Attention) -> Attention:
    return attention if attention.window is None else replace(attention, window=attention.window - 1)


def _swap_kinds(architecture: Architecture) -> Architecture:
    ropes = dict(zip(architecture.ropes(), reversed(architecture.ropes()), strict=True))
    return _attentions(lambda found: replace(found, rope=None if found.rope is None else ropes[found.rope]))(
        architecture
    )


def _rotate_everywhere(architecture: Architecture) -> Architecture:
    (rope,) = architecture.ropes()
    return _attentions(lambda found: replace(found, rope=rope))(architecture)


def _head_norms_without_offset(attention: Attention) -> Attention:
    assert attention.norm is not None
    plain = [replace(norm, offset=0.0) for norm in (attention.norm.query, attention.norm.key)]
    return replace(attention, norm=QueryKeyNorm(*plain))


def _unscaled(linear: Linear) -> Linear:
    return replace(linear, scale=1.0)


PLANTED: dict[str, tuple[str, Plant]] = {
    "missing bias": ("qwen2", _attentions(lambda found: replace(found, qkv=replace(found.qkv, biases=())))),
    "window one too short": ("mistral", _attentions(_shorter_window)),
    "window one too short in some layers": ("qwen2", _attentions(_shorter_window)),
    "no window": ("gemma2", _attentions(lambda found: replace(found, window=None))),
    "wrong attention scale": ("llama", _attentions(lambda found: replace(found, scale=found.scale * 1.01))),
    "scale by head size": ("gemma2", _attentions(lambda found: replace(found, scale=16**-0.5))),
    "no norm of heads": ("qwen3", _attentions(lambda found: replace(found, norm=None))),
    "no norm of projections": ("olmo2", _attentions(lambda found: replace(found, norm=None))),
    "attention factor forgotten": ("qwen3", _rope(attention_factor=1.0)),
    "yarn taken for linear": ("qwen3", _rope(scaling=LinearScaling(4.0))),
    "yarn with another ramp": ("qwen3", _rope(scaling=YarnScaling(4.0, 24, truncate=False))),
    "divisors forgotten": ("phi4_mini", _rope(scaling=None)),
    "scaling forgotten": ("llama", _rope(scaling=DynamicScaling(1.0, 96))),
    "all components rotate": ("phi4_mini", _rope(rotary_dim=16, scaling=None)),
    "positions in every layer": ("smollm3", _rotate_everywhere),
    "gate and up swapped": (
        "phi3",
        _mlps(lambda mlp: replace(mlp, gate=mlp.up, up=mlp.gate)),
    ),
    "missing 1 + w": (
        "gemma2",
        _layers(lambda layer: replace(layer, attention_norm=_without_offset(layer.attention_norm))),
    ),
    "missing 1 + w at the end": (
        "gemma3",
        lambda found: replace(found, final_norm=replace(found.final_norm, offset=0.0)),
    ),
    "missing 1 + w of heads": ("gemma3", _attentions(_head_norms_without_offset)),
    "no norm after attention": ("olmo2", _layers(lambda layer: replace(layer, attention_post_norm=None))),
    "no norm after the MLP": ("gemma3", _layers(lambda layer: replace(layer, mlp_post_norm=None))),
    "another activation": ("gemma2", _mlps(lambda mlp: replace(mlp, activation="silu"))),
    "shares of all experts": ("mixtral", _experts(lambda experts: replace(experts, normalized=False))),
    "shares of the chosen experts": ("qwen3_moe", _experts(lambda experts: replace(experts, normalized=True))),
    "an expert too few": ("qwen3_moe", _experts(lambda experts: replace(experts, num_active=1))),
    "experts out of order": (
        "mixtral",
        _experts(lambda found: replace(found, experts=(*found.experts[1:], found.experts[0]))),
    ),
    "no cap on scores": ("gemma2", _attentions(lambda found: replace(found, softcap=None))),
    "no cap on logits": ("gemma2", _fields(logit_softcap=None)),
    "embedding scale one percent off": (
        "gemma3",
        lambda found: replace(found, embedding_scale=found.embedding_scale * 1.01),
    ),
    "bases of the layers swapped": ("gemma3", _swap_kinds),
    "branches not multiplied": (
        "granite",
        _mlps(lambda mlp: replace(mlp, down=_unscaled(mlp.down))),
    ),
    "logits not divided": ("granite", _fields(logit_scale=1.0)),
    "embeddings not multiplied": ("granite", _fields(embedding_scale=1.0)),
}


def _swapped_halves(rope: Rope, num_positions: int) -> Tables:
    cosine, sine = rotary_tables(rope, num_positions)
    return cosine, -sine


def _reversed_frequencies(rope: Rope, num_positions: int) -> Tables:
    """The first pair turns as slowly as the last one should."""
    cosine, sine = rotary_tables(rope, num_positions)
    return cosine[:, ::-1].copy(), sine[:, ::-1].copy()


def _first_position_twice(rope: Rope, num_positions: int) -> Tables:
    """Off by one from the second token on; a shift of all positions would change nothing."""
    cosine, sine = (table[np.maximum(np.arange(num_positions) - 1, 0)] for table in rotary_tables(rope, num_positions))
    return cosine, sine


def _from_position_thirty(rope: Rope, num_positions: int) -> Tables:
    """Off by one from there on: shorter proofs would not see it."""
    places = np.arange(num_positions)
    wrong = np.minimum(places + (places >= 30), num_positions - 1)
    cosine, sine = (table[wrong] for table in rotary_tables(rope, num_positions))
    return cosine, sine


@every_family
@every_precision
def test_without_a_planted_error_the_proof_passes(
    tmp_path: Path, family: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _prove(tmp_path, family, monkeypatch, lambda right: right, precision)


@pytest.mark.parametrize("error", PLANTED)
@every_precision
def test_the_proof_catches(tmp_path: Path, error: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, plant = PLANTED[error]
    assert not _prove(tmp_path, family, monkeypatch, plant, precision)


@pytest.mark.parametrize(
    ("family", "tables"),
    [
        *((family, _swapped_halves) for family in NAMES),
        *((family, _first_position_twice) for family in NAMES),
        ("llama", _reversed_frequencies),
        ("llama", _from_position_thirty),
    ],
)
def test_the_proof_catches_wrong_positions(
    tmp_path: Path, family: str, tables: Callable[[Rope, int], Tables], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "rotary_tables", tables)
    assert not _prove(tmp_path, family, monkeypatch, lambda right: right)


def test_errors_are_planted_in_every_family() -> None:
    assert {family for family, _ in PLANTED.values()} == set(NAMES)


def _without_bias(graph: Any, plan: Any, value: str, **options: Any) -> str:
    return multiply(graph, replace(plan, linear=replace(plan.linear, biases=())), value, **options)


def _one_percent_larger(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes, scale = quantize_int8_rows(values)
    return codes, scale * np.float32(1.01)


@pytest.mark.parametrize(
    ("error", "precision", "place", "wrong"),
    [
        ("swapped rope halves", "fp32", "attention.rotary_tables", _swapped_halves),
        ("off-by-one position", "fp32", "attention.rotary_tables", _first_position_twice),
        ("wrong scale", "int8", "matrix.quantize_int8_rows", _one_percent_larger),
        ("missing bias", "fp32", "decoder.multiply", _without_bias),
        ("missing bias", "int8", "decoder.multiply", _without_bias),
        ("off-by-one position", "int4", "attention.rotary_tables", _first_position_twice),
    ],
)
def test_an_error_in_the_exporter_ends_in_a_marked_folder(
    tmp_path: Path,
    error: str,
    precision: str,
    place: str,
    wrong: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the command line to the server: status 1, a report that says why, and a refusal."""
    source, out = copy_family("qwen2", tmp_path / "source"), tmp_path / "out"
    block = ("--block-size", str(BLOCK_SIZE)) if precision == "int4" else ()
    words = ("export", source, out, "--precision", precision, "--max-context", str(MAX_CONTEXT), *block)
    with monkeypatch.context() as patch:
        patch.setattr(f"ortserve.export.graph.{place}", wrong)
        assert run_verb(*words) == 1
    printed = capsys.readouterr()
    assert "FAILED" in printed.out
    assert "is marked unverified" in printed.err
    report = read_report(out)
    assert not report.verified
    assert {check.name for check in report.checks if not check.passed}
    assert "**Unverified**" in (out / "README.md").read_text()
    with pytest.raises(UnverifiedError, match="--allow-unverified"):
        check_verified(out, allow=False)
    assert run_verb("verify", out) == 1
    assert run_verb("verify", out, "--against", source) == 1  # measured again, it is as wrong as before
    assert run_verb(*words, "--force") == 0  # without the error
    assert check_verified(out, allow=False)
    with monkeypatch.context() as patch:
        patch.setattr(f"ortserve.export.graph.{place}", wrong)
        assert run_verb(*words, "--force") == 1
    assert "keeps the verified export" in capsys.readouterr().err
    assert check_verified(out, allow=False)
