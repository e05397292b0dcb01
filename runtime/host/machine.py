"""What this host offers: memory, cores, CPU features, and the limits of its cgroup. Knows no models and no sessions.

Everything is read from /proc and the cgroup file systems (v1 and v2); `root` replaces "/" in tests. A limit may be set
on any group above the process, so each level is read and the tightest wins.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63
_FEATURES = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),  # Arm
)


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Bytes. `available` is what this process can still take without swapping: the host's and its cgroups' headroom."""

    total: int  # physical memory of the host
    available: int
    cgroup_limit: int | None  # the tightest limit above this process; None: none is set

    @property
    def ceiling(self) -> int:
        """The most that this process could ever hold."""
        return self.total if self.cgroup_limit is None else min(self.total, self.cgroup_limit)


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """What the processor is and how much of it this process may use."""

    model: str
    architecture: str  # x86_64, aarch64
    num_cores: int  # logical, online on the host
    num_usable: int  # of those, in this process's affinity mask
    cgroup_cores: float | None  # CPU quota of the cgroup in cores; None: no quota
    features: tuple[str, ...]  # those that matrix kernels choose by

    @property
    def num_whole(self) -> int:
        """Cores that threads may keep busy without being stopped by the quota; at least one."""
        return _whole_cores(self.num_usable, self.cgroup_cores)

    @property
    def has_vnni(self) -> bool:
        """8-bit dot products that accumulate exactly into 32 bits."""
        return not {"avx_vnni", "avx512_vnni", "asimddp"}.isdisjoint(self.features)

    @property
    def has_amx(self) -> bool:
        """8-bit matrix tiles."""
        return "amx_int8" in self.features


def memory_budget(root: Path = _ROOT) -> MemoryFacts:
    """Memory of the host and of the cgroups this process is in, now."""
    fields = _colon_fields(_read(root / "proc/meminfo"))
    total = _kibibytes(fields.get("MemTotal")) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _kibibytes(fields.get("MemAvailable")) or _kibibytes(fields.get("MemFree")) or total
    limits: list[int] = []
    for folder in _cgroup_folders(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or limit >= min(_UNLIMITED, total):
            continue
        limits.append(limit)
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        # Clean page cache counts as used but is dropped before anything is killed.
        held = used - _inactive_file(_read(folder / "memory.stat"))
        available = min(available, max(limit - held, 0))
    return MemoryFacts(total, available, min(limits, default=None))


def cpu_facts(root: Path = _ROOT) -> CpuFacts:
    """The processor, the affinity mask and the cgroups' quota."""
    fields = _colon_fields(_read(root / "proc/cpuinfo"))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return CpuFacts(
        model=fields.get("model name") or fields.get("Hardware") or platform.processor() or "unknown",
        architecture=platform.machine(),
        num_cores=os.cpu_count() or 1,
        num_usable=len(os.sched_getaffinity(0)),
        cgroup_cores=_cgroup_cores(root),
        features=tuple(feature for feature in _FEATURES if feature in flags),
    )


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Folders of the process's cgroup and of those above it, for a v1 controller and for the unified hierarchy."""
    groups: dict[str, str] = {}  # controller, or "" for v2 -> path of the group
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        groups.update((name, path) for name in names.split(","))
    folders: list[Path] = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        # 36 35 98:0 /root /mount/point options... - type source superoptions
        before, _, after = line.partition(" - ")
        words, kind = before.split(), after.split()
        if kind[0] == "cgroup2":
            group = groups.get("")
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            group = groups.get(controller)
        else:
            continue
        if group is not None:
            folders += _chain(root / words[4].lstrip("/"), words[3], group)
    return folders


def _chain(mount: Path, mounted_group: str, group: str) -> list[Path]:
    """From the group's folder up to the mount point. A container may see only its own group, mounted as the root."""
    inside = group.removeprefix(mounted_group.rstrip("/")).strip("/") if group.startswith(mounted_group) else ""
    folder = mount / inside if ".." not in inside.split("/") else mount
    chain = [folder]
    while folder != mount:
        folder = folder.parent
        chain.append(folder)
    return chain


def usable_cores(root: Path = _ROOT) -> int:
    """As `CpuFacts.num_whole`, without a look at the processor."""
    return _whole_cores(len(os.sched_getaffinity(0)), _cgroup_cores(root))


def _whole_cores(num_usable: int, cgroup_cores: float | None) -> int:
    return num_usable if cgroup_cores is None else min(num_usable, max(1, int(cgroup_cores)))


def _cgroup_cores(root: Path) -> float | None:
    quotas = [quota for folder in _cgroup_folders(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return min(quotas, default=None)


def _cpu_quota(folder: Path) -> float | None:
    """Cores that the group's quota allows."""
    words = _read(folder / "cpu.max").split()  # v2: "max 100000" or "150000 100000"
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period else None


def _inactive_file(stat: str) -> int:
    fields = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    value = fields.get("total_inactive_file") or fields.get("inactive_file") or "0"  # v1 counts children apart
    return int(value) if value.isdigit() else 0


def _colon_fields(text: str) -> dict[str, str]:
    """`name : value` lines; the first of equal names wins (all cores of /proc/cpuinfo look alike)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _kibibytes(value: str | None) -> int | None:
    return int(value.removesuffix("kB")) * 1024 if value else None


def _number(path: Path) -> int | None:
    """The number in a one-line file; None when it is missing, "max" or negative."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
