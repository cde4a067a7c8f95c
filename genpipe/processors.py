"""What of a machine this process may use: what it is bound to, and what its container allows it."""

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


def memory_left(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Say how many bytes of memory the process's control groups leave it, caches of files not counted; None for no limit."""
    left = []
    for place, second in _places(groups, own, "memory"):
        limit, used = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        numbers = [_number(place / name) for name in (limit, used)]
        if numbers[0] is not None and numbers[1] is not None:
            left.append(max(0, numbers[0] - numbers[1] + _cached(place / "memory.stat")))
    return min(left, default=None)


def _places(groups: Path, own: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of the process's control groups for a controller and of those above; whether each is of version 2."""
    for line in ["0::/", *_text(own).splitlines()]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        folder = PurePosixPath("/", *(part for part in path.split("/") if part not in ("", "..")))
        for parent in (folder, *folder.parents):
            yield root / str(parent).lstrip("/"), not controllers


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The shares of processor time that the process's control group and those above it have; versions 1 and 2."""
    for place, second in _places(groups, own, "cpu"):
        names = ("cpu.max",) if second else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        try:
            quota, period = " ".join(_text(place / name).strip() for name in names).split()
            share = float(quota) / float(period)
        except (ValueError, ZeroDivisionError):  # none is set ("max"), or there is no such group
            continue
        if share > 0:
            yield share


def _cached(file: Path) -> int:
    """The bytes of files that a group holds in memory and gives up when it needs more."""
    words = (line.split() for line in _text(file).splitlines())
    cached = {name: number for name, number in (pair for pair in words if len(pair) == 2) if number.isdecimal()}
    return int(cached.get("inactive_file", 0)) + int(cached.get("active_file", 0))


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
