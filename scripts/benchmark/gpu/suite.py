"""The tests, with the names of those that fail, kept as they fail."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark.gpu.sections import Plan, Say

ROOT = Path(__file__).parents[3]
TEXT = 3000  # characters kept of each failure
TOY = ["tests/test_files.py", "tests/test_progress.py"]


def gpu_tests(plan: Plan, say: Say) -> None:
    """The tests that are marked as needing a GPU, in the files that have such."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    run(say, ["-m", "gpu", "-n", "1" if plan.toy else "8", *map(str, marked)])


def suite(plan: Plan, say: Say) -> None:
    """All other tests, on all processors but four, and behind whatever else runs there."""
    os.nice(10)
    few = ["-n", "1", *TOY] if plan.toy else ["-n", str(max(1, (os.cpu_count() or 1) - 4))]
    run(say, ["-m", "not gpu", *few])


def run(say: Say, arguments: list[str]) -> None:
    """Run pytest in this process, its workers beside it."""
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", str(ROOT)]
    say("exit_status", int(pytest.main([*options, *arguments], plugins=[Recorder(say)])))


class Recorder:
    """A plugin of pytest that keeps what fails at once, and how many tests passed so far once per second."""

    def __init__(self, say: Say) -> None:
        self._say, self._counts, self._said = say, Counter[str](), time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test, or one that failed before or after its call."""
        if report.when == "call" or report.outcome != "passed":
            self._counts[report.outcome] += 1
        if report.failed:
            self._failure(report.nodeid, report.longreprtext)
        if time.monotonic() - self._said > 1:
            self._say_counts()

    def pytest_collectreport(self, report: Any) -> None:
        """Keep a file that could not be read."""
        if report.failed:
            self._counts["failed"] += 1
            self._failure(report.nodeid, report.longreprtext)

    def pytest_sessionfinish(self) -> None:
        """Say the last counts."""
        self._say_counts()

    def _failure(self, name: str, text: str) -> None:
        self._say(f"failure/{name}", text[-TEXT:])

    def _say_counts(self) -> None:
        self._said = time.monotonic()
        for outcome in ("passed", "failed", "skipped"):
            self._say(outcome, self._counts[outcome])
