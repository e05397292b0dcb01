"""Finds the packed matrices of an AWQ or GPTQ checkpoint. Knows their settings and file layouts, no architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ortserve.export.errors import ExportError
from ortserve.export.sources.json_fields import JsonObject, flag, read_optional_json
from ortserve.export.sources.packed_tensor import WORD_BITS, Layout, PackedTensor, Packing
from ortserve.export.sources.safetensors_file import INTEGERS, StoredTensor

SETTINGS = "quantization_config"
OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # what libraries wrote beside config.json
AWQ_BITS = (4,)
GPTQ_BITS = (4, 8)
AWQ_LAYOUTS: Mapping[str, Layout] = {"gemm": "gemm", "gemv": "gemv"}
GPTQ_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
SMALLEST_GROUP = 16  # columns; the smallest block that the kernels know
REMEDY = "use the unquantized checkpoint"


def read_packing(folder: Path, config: JsonObject) -> Packing | None:
    """How the checkpoint's matrices are stored; None for one that is not quantized.

    Raises `ExportError` naming the method, version, bits or group size that is not read.
    """
    settings = config.get(SETTINGS)
    if settings is None:
        for name, method in OLD_FILES.items():
            found = read_optional_json(folder / name)
            if found:
                return _read(folder / name, {"quant_method": method, **found})
        return None
    if not isinstance(settings, dict):
        raise ExportError(f"{folder / 'config.json'}: {SETTINGS} is no object")
    return _read(folder / "config.json", settings)


def _read(path: Path, settings: JsonObject) -> Packing:
    method = str(settings.get("quant_method")).lower()
    if method not in READERS:
        raise ExportError(
            f"{path}: the checkpoint is quantized by {settings.get('quant_method')!r}; awq and gptq are taken over as"
            f" they are, others not: {REMEDY}"
        )
    return READERS[method](path, settings)


def _read_awq(path: Path, settings: JsonObject) -> Packing:
    version = str(settings.get("version", settings.get("format", "gemm"))).lower()
    if version not in AWQ_LAYOUTS:
        raise ExportError(f"{path}: AWQ version {version!r} is not read: export takes gemm and gemv, or {REMEDY}")
    if not flag(settings, "zero_point", True):
        raise ExportError(f"{path}: AWQ without zero points is stored for one kernel only, which is not read: {REMEDY}")
    bits = _bits(path, "AWQ", settings, "w_bit", AWQ_BITS)
    return Packing(AWQ_LAYOUTS[version], bits, _group_size(path, settings, "q_group_size"))


def _read_gptq(path: Path, settings: JsonObject) -> Packing:
    version = str(settings.get("checkpoint_format", settings.get("format", "gptq"))).lower()
    if version not in GPTQ_ZERO_OFFSETS:
        known = " and ".join(GPTQ_ZERO_OFFSETS)
        raise ExportError(f"{path}: GPTQ format {version!r} is not read: export takes {known}, or {REMEDY}")
    if settings.get("pack_dtype", "int32") != "int32":
        raise ExportError(
            f"{path}: GPTQ in words of {settings['pack_dtype']} is not read: export takes int32, or {REMEDY}"
        )
    bits = _bits(path, "GPTQ", settings, "bits", GPTQ_BITS)
    return Packing("gptq", bits, _group_size(path, settings, "group_size"), GPTQ_ZERO_OFFSETS[version])


READERS: Mapping[str, Callable[[Path, JsonObject], Packing]] = {"awq": _read_awq, "gptq": _read_gptq}


def _bits(path: Path, method: str, settings: JsonObject, old_name: str, known: tuple[int, ...]) -> int:
    bits = settings.get("bits", settings.get(old_name))
    if isinstance(bits, bool) or bits not in known:
        takes = " and ".join(map(str, known))
        raise ExportError(f"{path}: {method} with {bits!r} bits is not read: export takes {takes}, or {REMEDY}")
    return int(bits)


def _group_size(path: Path, settings: JsonObject, old_name: str) -> int | None:
    size = settings.get("group_size", settings.get(old_name))
    if size in (None, -1):
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < SMALLEST_GROUP or size & (size - 1):
        raise ExportError(
            f"{path}: group size {size!r} is not read: export takes powers of two from {SMALLEST_GROUP} and -1,"
            f" or {REMEDY}"
        )
    return size


def unpacked_names(
    folder: Path, tensors: Mapping[str, StoredTensor], packing: Packing
) -> dict[str, StoredTensor | PackedTensor]:
    """The tensors by the names they had before they were packed.

    Raises `ExportError` naming a tensor that is missing, misshapen, or of integers that nothing is known of.
    """
    found: dict[str, StoredTensor | PackedTensor] = {}
    parts: set[str] = set()
    for name in tensors:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            found[f"{module}.weight"] = _packed(folder, tensors, module, packing)
            parts |= {f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    if not found:
        raise ExportError(f"{folder}: config.json says it is quantized, and no tensor is: download it again")
    for name, tensor in tensors.items():
        if name in parts:
            continue
        if tensor.dtype in INTEGERS.values():
            raise ExportError(f"{folder}: {name} holds integers that belong to no packed matrix: {REMEDY}")
        found[name] = tensor
    return found


def _packed(folder: Path, tensors: Mapping[str, StoredTensor], module: str, packing: Packing) -> PackedTensor:
    for part in ("scales", "qzeros"):
        if f"{module}.{part}" not in tensors:
            raise ExportError(f"{folder} has no tensor {module}.{part}: a shard is missing")
    codes, scales, zeros = (tensors[f"{module}.{part}"] for part in ("qweight", "scales", "qzeros"))
    groups = tensors.get(f"{module}.g_idx") if packing.layout == "gptq" else None
    for part, tensor in {"qweight": codes, "scales": scales, "qzeros": zeros}.items():
        if len(tensor.shape) != 2 or (tensor.dtype in INTEGERS.values()) != (part != "scales"):
            raise _misshapen(folder, module, part, tensor)
    per_word = WORD_BITS // packing.bits
    first, second = codes.shape
    shape = {
        "gemm": (second * per_word, first),
        "gemv": (first, second * per_word),
        "gptq": (second, first * per_word),
    }[packing.layout]
    packed = PackedTensor(packing, codes, scales, zeros, groups, shape)
    num_rows, num_groups = shape[0], packed.num_groups
    if packing.layout == "gemv":  # padded with groups that no column is in
        fits = scales.shape[0] == zeros.shape[0] == num_rows and num_groups <= scales.shape[1]
        fits = fits and num_groups <= zeros.shape[1] * per_word
    else:
        fits = scales.shape == (num_groups, num_rows) and zeros.shape == (num_groups, -(-num_rows // per_word))
    if not fits:
        raise _misshapen(folder, module, "scales", scales)
    if groups is not None and (
        groups.shape != shape[1:]
        or groups.dtype not in INTEGERS.values()
        or not 0 <= int(packed.groups.min(initial=0)) <= int(packed.groups.max(initial=0)) < num_groups
    ):
        raise _misshapen(folder, module, "g_idx", groups)
    return packed


def _misshapen(folder: Path, module: str, part: str, tensor: StoredTensor) -> ExportError:
    return ExportError(
        f"{folder}: {module}.{part} is {tensor.dtype} {list(tensor.shape)}, which its settings in config.json do not"
        " imply: the files belong to different checkpoints"
    )
