"""Host facts from made-up /proc and cgroup trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ortserve.runtime import session
from ortserve.runtime.host.machine import cpu_facts, memory_budget, usable_cores

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "35 31 0:32 {group} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "36 31 0:33 {group} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def host(root: Path, *, cgroup: str, mountinfo: str, **files: str) -> Path:
    return write(
        root,
        {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo, **files},
    )


def test_a_host_without_limits(tmp_path: Path) -> None:
    memory = memory_budget(host(tmp_path, cgroup="0::/user.slice\n", mountinfo=V2))
    assert (memory.total, memory.available, memory.cgroup_limit) == (16 * GIB, 8 * GIB, None)
    assert memory.ceiling == 16 * GIB


def test_the_tightest_limit_on_the_way_up_wins(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/a/cpu.max": "max 100000\n",
    }
    root = host(tmp_path, cgroup="0::/a/b\n", mountinfo=V2, **files)
    memory = memory_budget(root)
    assert memory.cgroup_limit == memory.ceiling == 4 * GIB
    assert memory.available == 2 * GIB  # page cache can be dropped
    assert cpu_facts(root).cgroup_cores == 1.5


@pytest.mark.parametrize(
    ("group", "folder"),
    [("/", "docker/x/"), ("/docker/x", ""), ("/somewhere/else", "")],  # mounted whole; only its own group; unrelated
)
def test_version_1_in_and_outside_a_container(tmp_path: Path, group: str, folder: str) -> None:
    memory, cpu = f"sys/fs/cgroup/memory/{folder}", f"sys/fs/cgroup/cpu,cpuacct/{folder}"
    files = {
        f"{memory}memory.limit_in_bytes": f"{2 * GIB}\n",
        f"{memory}memory.usage_in_bytes": f"{GIB}\n",
        f"{memory}memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
        f"{cpu}cpu.cfs_quota_us": "50000\n",
        f"{cpu}cpu.cfs_period_us": "100000\n",
    }
    lines = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/docker/x\n"
    root = host(tmp_path, cgroup=lines, mountinfo=V1.format(group=group), **files)
    found = memory_budget(root)
    assert (found.cgroup_limit, found.available) == (2 * GIB, 3 * GIB // 2)
    assert cpu_facts(root).cgroup_cores == 0.5


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    root = host(tmp_path, cgroup="4:memory:/\n3:cpu,cpuacct:/\n", mountinfo=V1.format(group="/"), **files)
    assert memory_budget(root).cgroup_limit is None
    assert cpu_facts(root).cgroup_cores is None


def test_processor_features(tmp_path: Path) -> None:
    intel = (
        "processor : 0\nmodel name : Xeon\nflags : fpu avx2 amx_int8 avx512_vnni\n\nprocessor : 1\nmodel name : Other\n"
    )
    cpu = cpu_facts(write(tmp_path / "x", {"proc/cpuinfo": intel}))
    assert (cpu.model, cpu.features) == ("Xeon", ("avx2", "avx512_vnni", "amx_int8"))
    assert cpu.has_amx
    assert cpu.has_vnni
    arm = cpu_facts(write(tmp_path / "a", {"proc/cpuinfo": "Features : fp asimd asimddp i8mm\n"}))
    assert arm.features == ("asimd", "asimddp", "i8mm")
    assert arm.has_vnni
    assert not arm.has_amx


def test_an_empty_root_still_answers(tmp_path: Path) -> None:
    memory, cpu = memory_budget(tmp_path), cpu_facts(tmp_path)
    assert memory.available == memory.total > 0
    assert cpu.num_usable >= 1
    assert cpu.features == ()


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 1), ("50000 100000", 1), ("250000 100000", 2), ("max 100000", 4)]
)
def test_threads_stay_within_a_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    """More would be stopped in the middle of a step, and the others would wait for them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    root = host(tmp_path, cgroup="0::/a\n", mountinfo=V2, **{"sys/fs/cgroup/a/cpu.max": f"{quota}\n"})
    assert usable_cores(root) == cpu_facts(root).num_whole == expected
    monkeypatch.setattr(session, "usable_cores", lambda: usable_cores(root))
    assert session.default_num_threads() == expected


def test_this_machine() -> None:
    memory, cpu = memory_budget(), cpu_facts()
    assert 0 < memory.available <= memory.ceiling <= memory.total
    assert 1 <= cpu.num_usable <= cpu.num_cores
