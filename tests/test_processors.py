"""The processors that a process may use are those of its container, not of its machine."""

import os
from pathlib import Path

import pytest

from genpipe.processors import memory_left, processors

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(folder: Path, own: str, **files: str) -> tuple[Path, Path]:
    groups = folder / "cgroup"
    for name, text in files.items():
        file = groups / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "own").write_text(own)
    return groups, folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, HERE),
        ("0::/\n", {"cpu.max": "max 100000\n"}, HERE),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "640000000 100000\n"}, HERE),
        ("0::/pod/me\n", {"pod__cpu.max": "90000 100000\n", "pod__me__cpu.max": "max 100000\n"}, 1),
        (
            "4:memory:/m\n3:cpu,cpuacct:/me\n",
            {"cpu__me__cpu.cfs_quota_us": "99", "cpu__me__cpu.cfs_period_us": "100"},
            1,
        ),
        ("3:cpu:/me\n", {"cpu__me__cpu.cfs_quota_us": "-1\n", "cpu__me__cpu.cfs_period_us": "100\n"}, HERE),
        ("nonsense", {"cpu.max": "nonsense"}, HERE),
        ("0::/../../etc\n", {"cpu.max": "1 0"}, HERE),
    ],
)
def test_the_least_of_what_binds_it_counts(tmp_path: Path, own: str, files: dict[str, str], expected: int) -> None:
    assert processors(*machine(tmp_path, own, **files)) == expected


def test_systems_without_control_groups_count_what_the_process_is_bound_to(tmp_path: Path) -> None:
    assert processors(tmp_path / "none", tmp_path / "nor this") == HERE


STAT = "anon 50\ninactive_file 30\nactive_file 20\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, None),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "400\n"}, 600),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": STAT}, 650),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "4000\n", "memory.stat": "nonsense\n1 2 3\n"}, 0),
        (
            "0::/pod/me\n",
            {"pod__memory.max": "900", "pod__memory.current": "1", "pod__me__memory.max": "max", "memory.max": "5000"},
            899,
        ),
        ("4:memory:/m\n", {"memory__m__memory.limit_in_bytes": "70", "memory__m__memory.usage_in_bytes": "7"}, 63),
        ("0::/\n", {"memory.max": "nonsense", "memory.current": "-3"}, None),
    ],
)
def test_the_memory_that_a_container_leaves(
    tmp_path: Path, own: str, files: dict[str, str], expected: int | None
) -> None:
    assert memory_left(*machine(tmp_path, own, **files)) == expected
