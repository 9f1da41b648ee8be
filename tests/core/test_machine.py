"""Machine facts from made-up /proc and /sys trees: the numbers are the kernel's documented ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from keifu.core import machine


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "0::/user.slice/job\n"
V1 = "4:memory:/docker/ab\n3:cpuset:/\n2:cpu,cpuacct:/docker/ab\n1:name=systemd:/x\n0::/\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/user.slice/job/cpu.max": "150000 100000"}, 1.5),
        # the parent's limit holds too
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
            },
            3.0,
        ),
        # in a container: the path does not exist, the mount's top is the group
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        ({"proc/self/cgroup": V1}, None),
        ({}, None),
        ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/cpu.max": "garbage"}, None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert machine.quota(put(tmp_path, files)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="topology is read from Linux's /sys")
def test_threads_counts_cores_once_and_respects_the_quota(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        name = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        put(tmp_path, {name: "0-1\n"})
    assert machine.physical(tmp_path) == 1
    assert machine.threads(tmp_path) == 1
    for cpu in cpus:
        name = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        put(tmp_path, {name: f"{cpu}\n"})
    assert machine.threads(tmp_path) == len(cpus)
    put(tmp_path, {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "20000 100000"})
    assert machine.threads(tmp_path) == 1


MEMINFO = "MemTotal:       8000000 kB\nMemFree: 100 kB\nMemAvailable:   6000000 kB\n"


@pytest.mark.parametrize(
    ("files", "limit", "available"),
    [
        ({}, None, 6_000_000 * 1024),
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/memory.max": "1000000\n",
                "sys/fs/cgroup/memory.current": "700000\n",
                "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 200000\n",
            },
            1_000_000,
            500_000,
        ),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/memory.max": "max\n"}, None, 6_000_000 * 1024),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": "2000000",
                "sys/fs/cgroup/memory/docker/ab/memory.usage_in_bytes": "500000",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            2_000_000,
            1_500_000,
        ),
    ],
)
def test_memory(tmp_path: Path, files: dict[str, str], limit: int | None, available: int) -> None:
    facts = machine.memory(put(tmp_path, {"proc/meminfo": MEMINFO, **files}))
    assert facts == machine.Memory(total=8_000_000 * 1024, limit=limit, available=available)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no /proc/cpuinfo")
def test_features(tmp_path: Path) -> None:
    text = "processor : 0\nmodel name : A Fine CPU\nflags : fpu avx2 avx512f amx_tile\n"
    put(tmp_path, {"proc/cpuinfo": text})
    assert machine.features(tmp_path) == ("avx2", "avx512f", "amx_tile")
    assert machine.processor(tmp_path) == "A Fine CPU"
    assert set(machine.features(tmp_path)) <= set(machine.FEATURES)


def test_this_machine_is_sane() -> None:
    assert 1 <= machine.threads() <= machine.affinity()
    facts = machine.memory()
    assert 0 < facts.available <= (facts.limit or facts.total) <= facts.total
