"""GGUF files that are damaged, hostile or of kinds that are not read: named errors, and nothing allocated first."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ortserve.export.errors import ExportError
from ortserve.export.families import read_architecture
from ortserve.export.gguf.file import read_gguf
from ortserve.export.open_source import open_source
from tests.export.checkpoints import Tiny, write_checkpoint
from tests.export.gguf_writer import text, typed, write_gguf
from tests.export.test_gguf import BYTE_LEVEL, LLAMA, make_pair, refused


def _rope_of(path: Path) -> Any:
    with open_source(path) as checkpoint:
        return read_architecture(checkpoint).ropes()[0].scaling


def test_rope_settings_are_read_or_named(tmp_path: Path) -> None:
    from ortserve.export.architecture import LinearScaling, Llama3Scaling

    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", "F32")
    path = tmp_path / "tiny.gguf"
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert _rope_of(write_gguf(path, {**pair.metadata, **linear}, pair.tensors)) == LinearScaling(4.0)
    wavelengths = 2 * np.pi * 5e5 ** (np.arange(8) / 8)
    blend = (8192 / wavelengths - 1) / 3
    factors = np.where(wavelengths > 8192, 32.0, np.where(wavelengths < 2048, 1.0, 1 / (blend + (1 - blend) / 32)))
    fast = {**pair.metadata, "llama.rope.freq_base": 5e5}
    assert factors.min() == 1
    assert factors.max() == 32

    def with_factors(values: NDArray[np.float64]) -> Path:
        tensors = {**pair.tensors, "rope_freqs.weight": ("F32", values.astype(np.float32))}
        return write_gguf(path, fast, tensors)

    assert _rope_of(with_factors(factors)) == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    with pytest.raises(ExportError, match=r"rope_freqs.weight is not Llama 3's"):
        _rope_of(with_factors(factors * 1.5))
    longrope = {"llama.rope.scaling.type": "longrope"}
    with pytest.raises(ExportError, match="rope scaling 'longrope' is not supported: export reads linear and yarn"):
        _rope_of(write_gguf(path, {**pair.metadata, **longrope}, pair.tensors))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"general.architecture": "mamba"},
            "GGUF architecture 'mamba' is not supported: export reads llama, qwen2, qwen3",
        ),
        ({"llama.expert_count": 8}, "has experts"),
        ({"llama.embedding_length": "x"}, "hidden_size is 'x', expected a positive whole number"),
        ({"llama.attention.head_count": 0}, "head_count 0 does not divide 64 rows"),
        ({"llama.rope.dimension_count": 8}, "rotates 8 of 16 components"),
        ({"general.alignment": 24}, "general.alignment 24"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer 'bert' is not supported: export reads gpt2 and llama"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.pre": "deepseek"},
            "pre-tokenizer 'deepseek' is not supported",
        ),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, metadata: Mapping[str, Any], message: str) -> None:
    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", "F32")
    assert message in refused(write_gguf(tmp_path / "tiny.gguf", {**pair.metadata, **metadata}, pair.tensors))


def test_other_types_and_tensors_are_named(tmp_path: Path) -> None:
    pair = make_pair(write_checkpoint(tmp_path / "source", LLAMA), "llama", "F32")
    path, name = tmp_path / "tiny.gguf", "blk.1.ffn_down.weight"
    odd = {**pair.tensors, name: ("Q6_K", pair.tensors[name][1])}
    message = refused(write_gguf(path, pair.metadata, odd))
    assert f"{name} has type Q6_K, export reads F32, F16, BF16, Q8_0, Q4_0" in message
    strange = {**pair.tensors, "blk.0.ssm_a.weight": pair.tensors[name]}
    assert "the tensor blk.0.ssm_a.weight is not known" in refused(write_gguf(path, pair.metadata, strange))
    without = {key: value for key, value in pair.tensors.items() if key != name}
    assert "has no tensor model.layers.1.mlp.down_proj.weight" in refused(write_gguf(path, pair.metadata, without))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated in its header"),
        (b"GGML" + bytes(40), "is no GGUF file"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors and 0 metadata entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62), "a text of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 61), "an array of"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 20),
            "truncated in its hea",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "value of type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99), "value of type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("a") + typed(1)), "'a' occurs twice"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 9), "'t' has 9 dimensions"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 0, 0, 0), "has shape [0]"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 8, 0, 1 << 62),
            "is truncated: t",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 8, 8, 0), "no multiple of 32"),
    ],
)
def test_hostile_headers_are_refused_before_anything_is_allocated(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(ExportError) as caught:
        read_gguf(tmp_path / "bad.gguf")
    assert message in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_byte_or_a_cut_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    pair = make_pair(write_checkpoint(folder / "source", Tiny(num_layers=1)), "llama", "F16")
    path = write_gguf(folder / "tiny.gguf", {**pair.metadata, **BYTE_LEVEL}, pair.tensors)
    data = bytearray(path.read_bytes())
    header = int(place * 2400)
    data = data[:header] if cut else data[:header] + bytes([value]) + data[header + 1 :]
    path.write_bytes(data)
    with suppress(ExportError), open_source(path) as checkpoint:
        architecture = read_architecture(checkpoint)
        checkpoint.read(architecture.embedding)
