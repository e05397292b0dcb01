"""What `--device` means for a model: one clear line when it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve.runtime.devices import choice as device_choice
from ortserve.runtime.devices.choice import choose_device, choose_devices, export_target, num_processes
from ortserve.runtime.devices.cuda_devices import CudaFacts
from ortserve.runtime.devices.cuda_library import LIBRARIES, pip_command
from ortserve.runtime.errors import DeviceError, OrtserveError
from ortserve.runtime.session import available_providers
from ortserve.runtime.testing import write_paged_synthetic_model, write_synthetic_model


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_model_for_the_cpu_runs_there(tmp_path: Path, name: str) -> None:
    assert choose_device(name, write_synthetic_model(tmp_path)) is None


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "CUDA", ""])
def test_unknown_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeviceError, match="is unknown: use auto, cpu, cuda or cuda:1"):
        choose_device(name, write_synthetic_model(tmp_path))


def test_a_model_of_the_other_device_says_how_to_export_it(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="exported for the CPU: export it again with --device cuda"):
        choose_device("cuda:1", write_synthetic_model(tmp_path / "slots"))
    with pytest.raises(DeviceError, match="exported for CUDA: export it again with --device cpu"):
        choose_device("cpu", write_paged_synthetic_model(tmp_path / "pages"))


@pytest.mark.skipif("CUDAExecutionProvider" in available_providers(), reason="this ONNX Runtime has CUDA")
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:3"])
def test_without_the_gpu_wheel_nothing_falls_back_in_silence(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeviceError, match=r"has no CUDA: pip uninstall -y onnxruntime && pip"):
        choose_device(name, write_paged_synthetic_model(tmp_path))


@pytest.mark.parametrize(
    ("name", "usable", "target"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cuda:1", False, "cuda"),
        ("cuda:0,cuda:1", False, "cuda"),
        ("cuda:all", False, "cuda"),
    ],
)
def test_a_checkpoint_is_exported_for_what_will_run_it(
    name: str, usable: bool, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_choice, "available_providers", lambda: ["CUDAExecutionProvider"] if usable else [])
    monkeypatch.setattr(device_choice, "has_driver", lambda: usable)
    assert export_target(name) == target
    with pytest.raises(DeviceError, match="is unknown"):
        export_target("gpu")


def test_the_remedy_names_each_package_once() -> None:
    assert pip_command(list(LIBRARIES)[2:5]) == "pip install 'nvidia-cublas~=13.0' 'nvidia-curand~=10.0'"


def test_several_gpus_are_an_engine_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paged = write_paged_synthetic_model(tmp_path / "pages")
    assert choose_devices("cuda:0,cuda:2", None, paged) == ("cuda:0", "cuda:2")
    assert choose_devices("cuda:0, cuda:2", 2, paged) == ("cuda:0", "cuda:2")
    facts = [CudaFacts(index, "A GPU", 2**30, (9, 0)) for index in range(3)]
    monkeypatch.setattr(device_choice, "cuda_devices", lambda: tuple(facts))
    assert choose_devices("cuda:all", None, paged) == ("cuda:0", "cuda:1", "cuda:2")
    with pytest.raises(DeviceError, match="exported for the CPU"):
        choose_devices("cuda:all", None, write_synthetic_model(tmp_path / "slots"))
    facts.clear()
    with pytest.raises(DeviceError, match="no GPU was found"):
        choose_devices("cuda:all", None, paged)


def test_engines_divide_the_cpu(tmp_path: Path) -> None:
    slots = write_synthetic_model(tmp_path)
    assert choose_devices("auto", None, slots) == ("auto",)
    assert choose_devices("cpu", 1, slots) == ("cpu",)
    assert choose_devices("auto", 3, slots) == ("auto",) * 3


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_one_engine_process_of_a_gpu_has_the_gpu_s_name(tmp_path: Path, device: str) -> None:
    """Its memory would be taken for the host's otherwise."""
    assert choose_devices(device, 1, write_paged_synthetic_model(tmp_path)) == ("cuda:0",)


@pytest.mark.parametrize(
    ("device", "engines", "line"),
    [
        ("cuda:0,cuda:0", None, "names cuda:0 twice: an engine has its GPU alone"),
        ("cuda:0,cpu", None, "is not a list of GPUs, as cuda:0,cuda:1"),
        ("cuda,cuda", None, "is not a list of GPUs"),
        ("cuda:0,cuda:1", 3, "--engines 3 and --device cuda:0,cuda:1, which is 2 of them, contradict each other"),
        ("auto", 2, "name the GPUs instead, as --device cuda:0,cuda:1"),
    ],
)
def test_lists_that_make_no_sense(tmp_path: Path, device: str, engines: int | None, line: str) -> None:
    with pytest.raises(OrtserveError, match=line):
        choose_devices(device, engines, write_paged_synthetic_model(tmp_path))


@pytest.mark.parametrize(
    ("wanted", "device", "paged", "expected"),
    [
        (None, "auto", False, None),
        (None, "auto", True, 1),
        (None, "cuda:1", True, 1),
        (None, "cuda:0,cuda:1", True, None),  # as many as there are GPUs
        (None, "cuda:all", True, None),
        (0, "cuda", True, None),
        (0, "cpu", False, None),
        (1, "cpu", False, 1),
        (3, "cpu", False, 3),
    ],
)
def test_a_gpu_has_a_process_of_its_own_unless_told_otherwise(
    tmp_path: Path, wanted: int | None, device: str, paged: bool, expected: int | None
) -> None:
    manifest = write_paged_synthetic_model(tmp_path) if paged else write_synthetic_model(tmp_path)
    assert num_processes(wanted, device, manifest) == expected
