"""Cores and memory that a process may use, from made-up ``/proc`` and ``/sys`` trees."""

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hotset.core import limits

GB = 10**9


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Make a system of eight cores, 16 GB (10 free, swap 2 free), and files as named."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    def make(**files):
        named = {
            "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9765625 kB\nSwapFree: 1953125 kB\n",
            **{
                f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 8},{cpu % 8 + 8}"
                for cpu in range(16)
            },
            **{name.replace("__", "/"): text for name, text in files.items()},
        }
        for name, text in named.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


V2 = {
    "proc/self/cgroup": "0::/outer/inner/own\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/outer/own\n2:cpu,cpuacct:/outer/own\n0::/\n",
    "proc/self/mountinfo": (
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    ),
}


def test_physical_cores_are_the_machines(system, monkeypatch):
    root = system()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert limits.physical_cores(root) == 8
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert limits.physical_cores(root / "elsewhere") == 6


def test_without_control_groups(system):
    root = system()
    assert limits.available_cores(root) == 8  # 16 threads
    assert limits.available_memory(root) == limits.Memory(12 * GB, "of this machine")


def test_windows_and_macos(tmp_path, monkeypatch):
    """Neither has /proc, /sys, an affinity in `os` or, on Windows, `os.sysconf`."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16 if logical else 8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GB, available=9 * GB))
    assert limits.available_cores(tmp_path) == limits.physical_cores(tmp_path) == 8
    assert limits.available_memory(tmp_path) == limits.Memory(9 * GB, "of this machine")
    assert limits.physical_memory() == 16 * GB


@pytest.mark.parametrize("depth", ["", "outer/", "outer/inner/", "outer/inner/own/"])
def test_version_2_at_any_depth(system, depth):
    group = f"sys/fs/cgroup/{depth}"
    root = system(
        **V2,
        **{
            group + "cpu.max": "250000 100000\n",
            group + "memory.max": f"{6 * GB}\n",
            group + "memory.current": f"{5 * GB}\n",
            group + "memory.swap.max": "0\n",
            group + "memory.stat": f"anon 7\nfile {4 * GB}\ninactive_file {2 * GB}\nactive_file {GB}\n",
        },
    )
    assert limits.available_cores(root) == 2
    assert limits.available_memory(root) == limits.Memory(4 * GB, "by the limit of its control group")


def test_the_tightest_of_nested_groups_counts(system):
    root = system(
        **V2,
        **{
            "sys/fs/cgroup/outer/cpu.max": "150000 100000",
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000",
            "sys/fs/cgroup/outer/inner/own/cpu.max": "400000 100000",
            "sys/fs/cgroup/outer/memory.max": f"{3 * GB}",
            "sys/fs/cgroup/outer/memory.current": f"{GB}",
            "sys/fs/cgroup/outer/inner/memory.max": "max",
            "sys/fs/cgroup/outer/inner/own/memory.max": f"{8 * GB}",
        },
    )
    assert limits.available_cores(root) == 1
    assert limits.available_memory(root).free == 4 * GB  # 2 GB, and the swap


@pytest.mark.parametrize("depth", ["", "outer/", "outer/own/"])
def test_version_1_at_any_depth(system, depth):
    root = system(
        **V1,
        **{
            f"sys/fs/cgroup/cpu/{depth}cpu.cfs_quota_us": "300000",
            f"sys/fs/cgroup/cpu/{depth}cpu.cfs_period_us": "100000",
            f"sys/fs/cgroup/memory/{depth}memory.limit_in_bytes": f"{4 * GB}",
            f"sys/fs/cgroup/memory/{depth}memory.usage_in_bytes": f"{3 * GB}",
            f"sys/fs/cgroup/memory/{depth}memory.memsw.limit_in_bytes": f"{5 * GB}",
            f"sys/fs/cgroup/memory/{depth}memory.memsw.usage_in_bytes": f"{3 * GB}",
            f"sys/fs/cgroup/memory/{depth}memory.stat": "total_inactive_file 500000000\n",
        },
    )
    assert limits.available_cores(root) == 3
    assert limits.available_memory(root).free == 2.5 * GB


def test_no_limits_are_none(system):
    root = system(
        **V1,
        **{
            "sys/fs/cgroup/cpu/outer/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/outer/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/outer/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert limits.available_cores(root) == 8
    assert limits.available_memory(root).free == 12 * GB


@pytest.mark.parametrize(
    ("shown", "path"), [("/docker/abc", "/docker/abc"), ("/", "/../../elsewhere"), ("/docker/abc", "/other")]
)
def test_a_container_sees_its_own_group_as_the_root(system, shown, path):
    root = system(
        **{
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": f"30 23 0:26 {shown} /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
            "sys/fs/cgroup/cpu.max": "200000 100000",
            "sys/fs/cgroup/memory.max": f"{GB}",
        }
    )
    assert limits.available_cores(root) == 2
    assert limits.available_memory(root).free == 3 * GB


def test_damaged_lines_are_passed_over(system):
    root = system(
        **{
            "proc/self/cgroup": "nonsense\n0::/\n\n",
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/cpu.max": "much 0",
            "sys/fs/cgroup/memory.max": "-3",
        }
    )
    assert limits.available_cores(root) == 8
    assert limits.available_memory(root).free == 12 * GB


def test_this_machine():
    assert limits.available_cores() >= 1
    if Path("/proc/meminfo").exists():
        assert limits.available_memory().free > 10**7
