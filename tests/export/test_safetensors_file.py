"""Safetensors files: the same values as the library reads and writes, and one line for every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ortserve.export.errors import ExportError
from ortserve.export.sources.safetensors_file import NewTensor, read_header, write_tensors


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 5), dtype=st.sampled_from(["F32", "F16", "BF16"]))
def test_what_is_written_the_library_reads_and_what_it_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("safetensors")
    numpy_dtype: Any = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    tensor = NewTensor("weight", dtype, (rows, columns))
    write_tensors(folder / "a", [tensor], lambda _: [values[:1], values[1:]], progress=lambda num_bytes: None)
    expected = values.astype(numpy_dtype)
    np.testing.assert_array_equal(load_file(folder / "a")["weight"], expected)
    save_file({"other": np.zeros(3, np.float32), "weight": expected}, folder / "b")
    stored = read_header(folder / "b")["weight"]
    assert stored.shape == (rows, columns)
    np.testing.assert_array_equal(stored.read(), expected.astype(np.float32))
    np.testing.assert_array_equal(stored.read(1, rows), expected[1:].astype(np.float32))


def _file(path: Path, header: object, data: bytes = b"") -> Path:
    encoded = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "damaged safetensors header"),
        ([], b"", "damaged safetensors header"),
        ({"w": {"shape": [1]}}, b"", "damaged safetensors header"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "contradicts its shape"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "truncated: w ends at byte"),
        ({"w": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}, b"12", "use the unquantized checkpoint"),
    ],
)
def test_damage_is_named(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        read_header(_file(tmp_path / "weights", header, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ExportError, match="truncated or no safetensors file"):
        read_header(tmp_path / "weights")


def test_a_missing_file_and_one_that_shrinks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No such file"):
        read_header(tmp_path / "weights")
    save_file({"w": np.zeros(64, np.float32)}, tmp_path / "weights")
    stored = read_header(tmp_path / "weights")["w"]
    (tmp_path / "weights").write_bytes((tmp_path / "weights").read_bytes()[:-8])
    with pytest.raises(ExportError, match="truncated"):
        stored.read()
    (tmp_path / "weights").unlink()
    with pytest.raises(ExportError, match="cannot be read"):
        stored.read()
