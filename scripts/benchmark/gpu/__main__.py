"""Measure everything on a GPU machine, and survive what fails.

    python -m scripts.benchmark.gpu --minutes 8 --out bench
    python -m scripts.benchmark.gpu --minutes 3 --out bench --sections sd15 render
    python -m scripts.benchmark.gpu --toy --minutes 2 --out bench

Each section runs in a process of its own, the most important first; those that find no time left are named. What each takes
on an H100 is printed first; it may take up to three times as long, but none of the time of those that give the figures that
are asked for. The tests, where they do not come last, run beside the sections that follow them, at the lowest priority. Without a
GPU, or with --toy, the same sections measure tiny networks on the CPU, which shows that they run. --out holds results.json,
rewritten with every figure; summary.txt, which is printed last; errors.txt, how sections failed; and failing_tests.txt.
Steps are those of the pipeline: the denoiser in bf16, guidance and the solver. Nothing needs a network;
diffusers is compared with where it is installed. CONTENT
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genpipe.files import atomic_write
from scripts.benchmark.gpu.sections import SECTIONS, Plan, Section
from scripts.benchmark.gpu.summary import ASKED, failures, summary

ROOT = Path(__file__).parents[3]
LONGER = 3.0  # times as long as is expected of it, a section may take at most
LEAST = 6.0  # seconds under which no section is begun
TAIL = 60  # lines kept of what a failed section printed
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class Process:
    """The process of one section: it imports what it needs, and waits to be told to go."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.figures, self.log = name, folder / f"{name}.jsonl", folder / f"{name}.log"
        self.began = self.ends = time.monotonic()
        self._log = self.log.open("wb")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmark.gpu.sections", name, str(self.figures)],
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, cwd=ROOT, start_new_session=True,
            env={**os.environ, **QUIET, "PYTHONPATH": path},
        )  # fmt: skip

    def go(self, plan: Plan) -> None:
        """Begin to measure."""
        assert self._process.stdin is not None
        self.began = time.monotonic()
        self.ends = self.began + plan.ends - time.time()
        with suppress(BrokenPipeError):  # it failed while it imported, as its log tells
            self._process.stdin.write(json.dumps(asdict(plan)).encode() + b"\n")
            self._process.stdin.flush()

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def found(self) -> dict[str, Any]:
        """The figures so far; a line that is still being written is left for the next time."""
        found: dict[str, Any] = {}
        if self.figures.exists():
            for line in self.figures.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    found |= json.loads(line)
        return found


class Run:
    """The whole benchmark: its sections, and what is on disk of them.

    Args:
        out: the folder of the results.
        minutes: for everything.
        toy: tiny networks on the CPU.
        sections: what they take.
    """

    def __init__(self, out: Path, minutes: float, *, toy: bool, sections: Mapping[str, Section] = SECTIONS) -> None:
        self.results: dict[str, Any] = {"minutes": minutes, "toy": toy, "sections": {}}
        self._out, self._toy, self._sections = out, toy, sections
        self._ends = time.monotonic() + 60 * minutes
        self._errors: list[str] = []
        self._process: list[Process] = []

    def run(self, names: Sequence[str], folder: Path) -> None:
        """Run sections one after the other, but beside the following ones those that may; the next one imports meanwhile."""
        loaded = (SECTIONS[name].checkpoint for name in names)
        needed = tuple(dict.fromkeys(name for name in loaded if name is not None))
        waiting = Process(names[0], folder)
        self._process = [waiting]
        beside: list[Process] = []
        for index, (name, following) in enumerate(zip(names, [*names[1:], None], strict=True)):
            process, section, left = waiting, self._sections[name], self._ends - time.monotonic()
            if left < LEAST:
                self._keep(name, "no time was left", 0.0, {})
                continue
            alone = following is None or not section.beside
            kept = sum(self._sections[later].seconds for later in names[index + 1 :] if later in ASKED)
            limit = min(left, max(section.seconds, min(LONGER * section.seconds, left - kept))) if alone else left
            found = {each: section["figures"] for each, section in self.results["sections"].items()}
            process.go(Plan(str(folder), self._toy, time.time() + limit, needed, found))
            self._keep(name, "running", 0.0, {})
            if following is not None:
                waiting = Process(following, folder)
                self._process.append(waiting)
            if alone:
                self._watch(process, beside)
            else:
                beside.append(process)
        for process in beside:
            self._watch(process, [])

    def stop(self) -> None:
        """End what still runs."""
        for process in self._process:
            process.kill()

    def _watch(self, process: Process, beside: Sequence[Process]) -> None:
        """Wait for a section to end, at its limit by force; keep its figures as they come, and those of the ones beside it."""
        sizes: dict[str, int] = {}
        while (status := process.status()) is None and time.monotonic() < process.ends:
            time.sleep(0.05)
            for each in (process, *beside):
                size = each.figures.stat().st_size if each.figures.exists() else 0
                if size != sizes.get(each.name):
                    sizes[each.name] = size
                    self._keep(each.name, "running", time.monotonic() - each.began, each.found())
        process.kill()
        state = "done" if status == 0 else "out of time" if status is None else f"failed (exit status {status})"
        if status != 0:
            lines = process.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
            self._errors.append(f"=== {process.name}: {state}\n" + "\n".join(lines) + "\n")
        self._keep(process.name, state, time.monotonic() - process.began, process.found())

    def _keep(self, name: str, state: str, seconds: float, figures: dict[str, Any]) -> None:
        self.results["sections"][name] = {"state": state, "seconds": seconds, "figures": figures}
        files = {"results.json": json.dumps(self.results, indent=1), "summary.txt": summary(self.results)}
        files |= {"errors.txt": "\n".join(self._errors), "failing_tests.txt": failures(self.results)}
        for file, text in files.items():
            with atomic_write(self._out / file) as part:
                part.write_text(text, encoding="utf-8")


def expected(names: Sequence[str], minutes: float) -> str:
    """What sections take on an H100, and how many of them there is time for."""
    passed, fit = 0.0, 0
    for name in names:
        passed += SECTIONS[name].seconds
        fit += passed <= 60 * minutes
    each = ", ".join(f"{name} {SECTIONS[name].seconds:g}" for name in names)
    return f"seconds on an H100: {each}; {passed:g} in all, of which {60 * minutes:g} hold the first {fit}\n"


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for checkpoints and images, in memory where there is enough of it."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 40e9
    with tempfile.TemporaryDirectory(dir=memory if roomy else None, prefix="genpipe-benchmark-") as folder:
        yield Path(folder)


def main(given: Sequence[str] | None = None) -> int:
    """Run the sections; 0 where none failed."""
    listed = "\n\nsections:\n" + "\n".join(f"  {name:<20} {section.about}" for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark.gpu",
        description=(__doc__ or "").replace(" CONTENT", listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), metavar="NAME",
                        help="only these, in this order (default: all)")  # fmt: skip
    parser.add_argument("--toy", action="store_true", help="tiny networks on the CPU")
    arguments = parser.parse_args(given)
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes} is out of range: give more than 0")
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in arguments.sections or SECTIONS if name != "card"]
    run = Run(arguments.out, arguments.minutes, toy=arguments.toy or shutil.which("nvidia-smi") is None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(expected(["card", *chosen], arguments.minutes), flush=True)
    with working_folder() as folder:
        try:
            run.run(["card", *chosen], folder)
        finally:
            run.stop()
            print(summary(run.results), flush=True)
    return 0 if all(section["state"] == "done" for section in run.results["sections"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
