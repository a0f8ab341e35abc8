"""What this process may use of the machine: cores and memory, by the system and by its control groups.

On Linux control groups nest, and every one of them counts: the process's own, and all those around it.
https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/
"""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED = 1 << 60
"""Limits of so many bytes are none: version 1 writes the largest number that it has."""


@dataclass(frozen=True)
class Memory:
    """Memory that can still be had."""

    free: int
    """Bytes; on Linux with swap."""
    bound: str
    """What sets the bound, for people."""


def available_cores(root: Path = _ROOT) -> int:
    """Physical cores that this process may use, by its affinity and its control groups' quotas.

    `root` is where ``/proc`` and ``/sys`` are. Windows and macOS have neither, and let every core be used.
    """
    if not hasattr(os, "sched_getaffinity"):
        return physical_cores(root)
    cpus = os.sched_getaffinity(0)
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = len({_read(root / siblings.format(cpu)) or str(cpu) for cpu in cpus})
    quotas = [float(cores)]
    for group in _groups(root, "cpu"):
        quota, _, period = (_read(group / "cpu.max") or "max").partition(" ")
        if quota == "max":  # version 1
            quota, period = (
                _read(group / "cpu.cfs_quota_us") or "-1",
                _read(group / "cpu.cfs_period_us") or "",
            )
        with contextlib.suppress(ValueError, ZeroDivisionError):
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return max(1, math.floor(min(quotas)))


def physical_cores(root: Path = _ROOT) -> int:
    """Physical cores of the machine, whoever may use them; processors, where the system does not say."""
    lists = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    if cores := len({_read(path) for path in lists}):
        return cores
    import psutil  # which takes 10 ms, and Linux seldom needs it

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def physical_memory() -> int:
    """Bytes of the machine's main memory, whoever may use them."""
    import psutil

    return int(psutil.virtual_memory().total)


def available_memory(root: Path = _ROOT) -> Memory:
    """Memory that this process can still get without being killed for it.

    What lies in files' caches is given up for it, and counts as free.
    """
    system = _table(root / "proc/meminfo", unit=1024)
    if "MemAvailable:" not in system:
        import psutil

        return Memory(int(psutil.virtual_memory().available), "of this machine")
    swap = system.get("SwapFree:", 0)
    found = Memory(system["MemAvailable:"] + swap, "of this machine")
    for group in _groups(root, "memory"):
        for free in (_free_by_version_2(group, swap), _free_by_version_1(group, swap)):
            if free is not None and free < found.free:
                found = Memory(max(0, free), "by the limit of its control group")
    return found


def _free_by_version_2(group: Path, swap: int) -> int | None:
    limit = _number(group / "memory.max")
    if limit is None:
        return None
    stat = _table(group / "memory.stat")
    caches = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    swap_limit = _number(group / "memory.swap.max")
    if swap_limit is not None:
        swap = min(swap, max(0, swap_limit - (_number(group / "memory.swap.current") or 0)))
    return limit - (_number(group / "memory.current") or 0) + caches + swap


def _free_by_version_1(group: Path, swap: int) -> int | None:
    limit = _number(group / "memory.limit_in_bytes")
    if limit is None:
        return None
    stat = _table(group / "memory.stat")
    caches = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    free = limit - (_number(group / "memory.usage_in_bytes") or 0) + caches + swap
    both = _number(group / "memory.memsw.limit_in_bytes")  # memory and swap together
    if both is None:
        return free
    return min(free, both - (_number(group / "memory.memsw.usage_in_bytes") or 0) + caches)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Directories of the control groups that this process is in, innermost first, of both versions."""
    paths = dict[str, str]()  # by controller; version 2, which has all in one tree, as ""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" ", 2), "", ""][:3]
        own = "" if kind == "cgroup2" else controller
        if own not in paths or not (kind == "cgroup2" or (kind == "cgroup" and own in options.split(","))):
            continue
        path = paths[own]
        shown, mount = fields.split()[3:5]  # which group is seen at the mount point
        mount_point = root / mount.lstrip("/")
        inner = path.removeprefix("" if shown == "/" else shown).strip("/")
        if not (path == shown or path.startswith(shown.rstrip("/") + "/")) or ".." in inner.split("/"):
            inner = ""  # seen from another place: what is around is all that can be seen
        group = mount_point / inner
        yield group
        while group != mount_point:
            group = group.parent
            yield group


def _number(path: Path) -> int | None:
    """A limit or a count of bytes; None where there is none."""
    text = _read(path) or ""
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _table(path: Path, unit: int = 1) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = [line.split() for line in (_read(path) or "").splitlines()]
    return {words[0]: int(words[1]) * unit for words in lines if len(words) > 1 and words[1].isdecimal()}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None
