"""How much memory the host itself has to spare."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_nbytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes that can be used without swapping, in this container if it is one; 0 if the system does not say.

    Args:
        meminfo: the kernel's table (proc(5), MemAvailable).
        cgroup: the folder with this process's limits (cgroup v2, memory.max and memory.current).
    """
    machine = _mem_available(meminfo)
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is None or used is None:
        return machine
    return min(machine, max(0, limit - used))


def _mem_available(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return 0
    fields = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return int(fields[1]) * 1024 if fields else 0


def _number(path: Path) -> int | None:
    """What the file holds; None if there is none, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
