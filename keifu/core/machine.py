"""What this process may use of the machine: cores, memory and processor features.

A container sees the whole host in /proc; its control group (cgroup v1 or v2) says what it may
use. All numbers here are the smaller of the two. Standard library alone, a few small reads.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_LINUX: bool = sys.platform == "linux"
_MACOS: bool = sys.platform == "darwin"
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63

FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "INT8 matrix",
    "bf16": "BF16",
    "sve": "SVE",
}
"""Processor flags (as Linux spells them) that kernels care about, and their common names."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of memory."""

    total: int
    """What the machine has."""
    limit: int | None
    """What the control group allows, if it is less than `total`."""
    available: int
    """What can still be taken without swapping, under the limit."""


def affinity() -> int:
    """Logical cores that this process may be scheduled on."""
    if _LINUX:
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(root: Path = _ROOT) -> float | None:
    """Cores' worth of time that the control group grants, or None where it sets no limit."""
    found = []
    for folder in _groups(root, "cpu"):
        parts = _words(folder / "cpu.max")  # v2: "200000 100000" or "max 100000"
        if not parts:  # v1
            parts = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        numbers = [int(part) for part in parts if part.lstrip("-").isdigit()]
        if len(numbers) == 2 and numbers[0] > 0 and numbers[1] > 0:
            found.append(numbers[0] / numbers[1])
    return min(found, default=None)


def physical(root: Path = _ROOT) -> int | None:
    """Physical cores among those of `affinity` (two threads of one core count once), if known."""
    if not _LINUX:
        return None
    seen = set()
    for cpu in os.sched_getaffinity(0):
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        words = _words(siblings)
        if not words:
            return None
        seen.add(words[0])
    return len(seen)


def threads(root: Path = _ROOT) -> int:
    """How many threads pay off: physical cores within affinity and quota, at least one.

    Hyper-threads share the arithmetic units and the memory port, so they only add waiting.
    """
    cores = physical(root) or affinity()
    limit = quota(root)
    return max(1, min(cores, int(limit + 0.5) if limit is not None else cores))


def memory(root: Path = _ROOT) -> Memory:
    """Total, limited and available memory of this process."""
    total, available = _installed(root)
    limit = used = None
    for folder in _groups(root, "memory"):
        for ceiling, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            value = _number(folder / ceiling)
            if value is not None and value < min(limit or total, _UNLIMITED):
                limit, used = value, (_number(folder / usage) or 0) - _cache(folder)
    if limit is not None:
        available = min(available, max(0, limit - max(0, used or 0)))
    return Memory(total=total, limit=limit, available=available)


def features(root: Path = _ROOT) -> tuple[str, ...]:
    """The processor's flags among `FEATURES`, in that order."""
    flags: set[str] = set()
    if _MACOS:
        flags = _darwin_flags()
    else:
        for line in _text(root / "proc/cpuinfo").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    return tuple(flag for flag in FEATURES if flag in flags)


def processor(root: Path = _ROOT) -> str:
    """The processor's name, as it tells it."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    import platform

    if _MACOS:
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and its ancestors, for one controller.

    A limit on any ancestor holds. Inside a container the path of /proc/self/cgroup may not exist
    under the mount (which then shows the container's own group at its top), so the top counts too.
    """
    top = root / "sys/fs/cgroup"
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            bases = [top, top / "unified"]
        elif controller in names.split(","):
            bases = [top / controller, top / names]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for base in dict.fromkeys(bases):
            folders += [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()]


def _cache(folder: Path) -> int:
    """Bytes of the group's use that are file pages, which the kernel gives back when asked."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _installed(root: Path) -> tuple[int, int]:
    """Bytes of memory in the machine, and free for the taking."""
    facts = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            facts[name] = int(words[0]) * 1024
    if "MemTotal" in facts:
        return facts["MemTotal"], facts.get("MemAvailable", facts.get("MemFree", 0))
    import psutil  # other systems keep no /proc; it costs 20 ms, so it is not used on Linux

    status = psutil.virtual_memory()
    return status.total, status.available


def _darwin_flags() -> set[str]:
    """What macOS says of the processor, in Linux's words."""
    names = {
        "hw.optional.avx2_0": "avx2",
        "hw.optional.avx512f": "avx512f",
        "hw.optional.AdvSIMD": "asimd",
        "hw.optional.arm.FEAT_DotProd": "asimddp",
        "hw.optional.arm.FEAT_I8MM": "i8mm",
        "hw.optional.arm.FEAT_BF16": "bf16",
    }
    return {flag for name, flag in names.items() if _sysctl(name) == "1"}


def _sysctl(name: str) -> str:
    """One value of macOS's sysctl, empty if it has no such name."""
    import subprocess  # 8 ms, for macOS alone

    done = subprocess.run(
        ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
    )
    return done.stdout.strip()


def _text(path: Path) -> str:
    """A small system file's text, empty where it does not exist or may not be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None
