"""How many processors this process may use: what it is bound to, and what its container allows it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Where Linux shows control groups, and a process its own.
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def processors(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Count the processors that this process may use: those it is bound to, or the quota of its control group, if less.

    Half a processor counts as one.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(groups, own))]))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The shares of processor time that the process's control group and those above it have; versions 1 and 2."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in ["0::/", *lines]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        folder = PurePosixPath("/", *(part for part in path.split("/") if part not in ("", "..")))
        for parent in (folder, *folder.parents):
            place = root / str(parent).lstrip("/")
            yield from (
                _quota(place / "cpu.max")
                if not controllers
                else _quota(place / "cpu.cfs_quota_us", place / "cpu.cfs_period_us")
            )


def _quota(*files: Path) -> Iterator[float]:
    try:
        quota, period = " ".join(file.read_text(encoding="utf-8").strip() for file in files).split()
        share = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # none is set ("max"), or there is no such group
        return
    if share > 0:
        yield share
