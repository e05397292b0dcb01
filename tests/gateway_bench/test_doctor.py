"""Each check of the doctor on a good and on a bad host, and the command as a whole."""

from __future__ import annotations

import argparse
import json
import resource
import socket
from dataclasses import replace

import pytest

from ortserve.gateway.doctor import cli, wheels
from ortserve.gateway.doctor.findings import Verdict
from ortserve.gateway.doctor.host import (
    check_cores,
    check_memory,
    check_open_files,
    check_port,
    check_processor,
    check_python,
)
from ortserve.gateway.doctor.recipes import Recipe, Timing, Workload, recommend
from ortserve.gateway.doctor.wheels import check_int8, check_runtime, check_wheels
from ortserve.runtime.errors import DeviceError
from ortserve.runtime.host.machine import CpuFacts, MemoryFacts

CPU = CpuFacts("Some CPU", "x86_64", num_cores=8, num_usable=4, cgroup_cores=None, features=("avx2",))


def test_python() -> None:
    assert check_python((3, 11)).verdict is Verdict.FINE
    assert check_python((3, 10)).verdict is Verdict.BROKEN


def test_processor_and_cores() -> None:
    assert check_processor(CPU).verdict is Verdict.NOTE
    assert check_processor(replace(CPU, features=("avx_vnni",))).verdict is Verdict.FINE
    assert "tiles" in check_processor(replace(CPU, features=("amx_int8",))).detail
    assert check_cores(CPU).verdict is Verdict.FINE
    assert check_cores(replace(CPU, cgroup_cores=4.0)).verdict is Verdict.FINE
    assert check_cores(replace(CPU, cgroup_cores=2.5)).detail == "4 of 8 usable, CPU quota 2.5: 2 threads for models"


def test_memory_and_open_files() -> None:
    small = check_memory(MemoryFacts(total=8 << 30, available=1 << 29, cgroup_limit=1 << 30))
    assert small.verdict is Verdict.NOTE
    assert "cgroup limit 1.0 GiB" in small.detail
    assert check_memory(MemoryFacts(8 << 30, 4 << 30, None)).verdict is Verdict.FINE
    assert check_open_files((1024, 1024)).verdict is Verdict.NOTE
    assert check_open_files((1024, resource.RLIM_INFINITY)).verdict is Verdict.FINE


def test_a_port_in_use_is_broken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = check_port("127.0.0.1", port)
    assert taken.verdict is Verdict.BROKEN
    assert "in use" in taken.detail
    assert check_port("127.0.0.1", port).verdict is Verdict.FINE


@pytest.mark.parametrize(
    ("installed", "verdict", "remedy"),
    [
        ({"onnxruntime": "1.32.0"}, Verdict.FINE, None),
        ({"onnxruntime-gpu": "1.31.1"}, Verdict.FINE, None),
        ({}, Verdict.BROKEN, "pip install 'ortserve[cpu]'"),
        ({"onnxruntime": "1.31.1"}, Verdict.BROKEN, "pip install 'onnxruntime>=1.32'"),
        (
            {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"},
            Verdict.BROKEN,
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'ortserve[cuda]'",
        ),
        ({"onnxruntime-openvino": "1.32.0"}, Verdict.NOTE, "pip install 'ortserve[cpu]'"),
    ],
)
def test_wheels(installed: dict[str, str], verdict: Verdict, remedy: str | None) -> None:
    finding = check_wheels(installed)
    assert (finding.verdict, finding.remedy) == (verdict, remedy)


def test_the_runtime_must_be_an_installed_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from ortserve.runtime.session import runtime_version

    assert check_runtime({"onnxruntime": runtime_version()}).verdict is Verdict.FINE
    assert check_runtime({"onnxruntime": "0.1.0"}).remedy == "pip install --force-reinstall --no-deps onnxruntime"

    def fail(name: str) -> None:
        raise ImportError("libx.so: cannot\nopen")

    monkeypatch.setattr(wheels, "import_module", fail)
    finding = check_runtime({})
    assert finding.verdict is Verdict.BROKEN
    assert "\n" not in finding.detail


def test_wrong_int8_kernels_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise DeviceError("wrong results")

    assert check_int8().verdict is Verdict.FINE
    monkeypatch.setattr("ortserve.runtime.session.check_int8_kernels", wrong)
    assert check_int8().verdict is Verdict.BROKEN


def timings(**medians: float) -> list[Timing]:
    names = {"int8": Recipe.INT8, "int4": Recipe.INT4_128, "fp32": Recipe.FP32}
    return [Timing(names[name], w, value, value, value) for w in Workload for name, value in medians.items()]


def test_recommendations_prefer_int8_when_it_is_nearly_the_fastest() -> None:
    def chosen(*, int8_works: bool = True, **medians: float) -> set[Recipe]:
        return {choice.recipe for choice in recommend(timings(**medians), int8_works=int8_works)}

    assert chosen(int8=1.05, int4=1.0, fp32=3.0) == {Recipe.INT8}
    assert chosen(int8=1.5, int4=1.0, fp32=3.0) == {Recipe.INT4_128}
    assert chosen(int8=0.5, int4=4.0, fp32=3.0, int8_works=False) == {Recipe.FP32}
    assert chosen() == set()
    assert Recipe.INT4_32.flags == "--precision int4 --block-size 32"
    assert Recipe.INT8.flags == "--precision int8"


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return parser.parse_args(words)


def test_the_command_reports_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.run(parsed("--quick", "--json"))
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["healthy"] else 1)
    assert {"python", "onnxruntime", "memory", "int8 kernels"} <= {finding["name"] for finding in report["findings"]}
    assert len(report["timings"]) == len(Recipe) * len(Workload)
    assert all(0 < t["lowest_ms"] <= t["median_ms"] <= t["highest_ms"] for t in report["timings"])
    assert [advice["workload"] for advice in report["advice"]] == list(Workload)


def test_a_broken_installation_is_exit_status_1_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "installed_runtimes", lambda: {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    monkeypatch.setattr(cli, "_measure", lambda **_: ((), ()))
    assert cli.run(parsed("--quick", "--port", "1")) == 1
    printed = capsys.readouterr().out
    assert "broken onnxruntime wheel" in printed
    assert "-> pip uninstall -y onnxruntime onnxruntime-gpu" in printed


def test_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--port", "70000")
    assert "not a port" in capsys.readouterr().err
