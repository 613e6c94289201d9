"""How much main memory is free, and files that are too large to be parsed in it."""

from __future__ import annotations

import os
from pathlib import Path

from selfdet.errors import UserError

OF_LABELS = 10  # bytes of memory that a byte of JSON labels becomes
GIB = 2**30


def free_memory() -> int | None:
    """Bytes of main memory that are free, within the limit of a container; None where the system doesn't tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def read_labels(path: Path) -> bytes:
    """The bytes of a file that is going to be parsed as a whole.

    Raises: UserError where the memory that is free would not hold what they become; OSError.
    """
    size, free = path.stat().st_size, free_memory() or _all_memory()
    if free is not None and OF_LABELS * size > free:
        raise UserError(
            f"{path} is {size / GIB:.1f} GiB, and to read it takes about {OF_LABELS * size / GIB:.0f} GiB of memory, "
            f"and there are {free / GIB:.1f} GiB",
            "Split it by images, or use a machine with more memory",
        )
    return path.read_bytes()


def _all_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
