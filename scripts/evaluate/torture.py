"""Kill, starve and poison `genpipe render`, and count what is lost.

    python -m scripts.evaluate.torture --json                 # 100 kills
    python -m scripts.evaluate.torture --kills 10 --pictures 16 --steps 1

Renders the embedded model, deterministically, into folder after folder. While it does, the coordinator or one of its
workers is killed (SIGKILL) at a random moment and the same command started again, until all is drawn. Then: a disk that
is full, memory that runs out at a random batch, NaN in one picture and, where Ray is installed, an actor that is killed.
At the end of each, every picture has to be there once, with the pixels of an undisturbed run, no partial file and the
journal whole. The last line is one JSON object; exit status 1 if anything was lost.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from genpipe.render import LocalEngine, Options, Run

Found = Counter[str]


def prompts(count: int) -> list[dict[str, Any]]:
    """Rows whose images are all different; some have names of their own."""
    rows: list[dict[str, Any]] = [{"prompt": f"{('pirate ship', 'ship')[k % 2]} {k // 3}"} for k in range(count)]
    for k in range(0, count, 5):
        rows[k]["file_name"] = f"named/{k}"
    return rows


def pixels(folder: Path) -> dict[str, str]:
    """The hash of every image's pixels, by its path below the folder."""
    found = {}
    for path in sorted((folder / "images").rglob("*")):
        if path.is_file():
            with Image.open(path) as image:
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(image.tobytes()).hexdigest()
    return found


def compare(folder: Path, reference: dict[str, str], failed: int = 0) -> Found:
    """What is wrong with a finished folder; `failed` images were made to fail."""
    found: Found = Counter()
    drawn = pixels(folder)
    listed = [json.loads(line)["file_name"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    found["expected"] = len(reference) - failed
    found["lost"] = len(reference.keys() - drawn.keys()) + len(reference.keys() - set(listed)) - 2 * failed
    found["duplicated"] = len(listed) - len(set(listed)) + len(drawn.keys() - reference.keys())
    found["differing"] = sum(drawn[name] != reference[name] for name in drawn.keys() & reference.keys())
    found["partial"] = sum(path.suffix == ".part" or path.parent.name == "parts" for path in folder.rglob("*"))
    with sqlite3.connect(folder / ".genpipe/journal.sqlite") as journal:
        found["broken_journals"] = int(journal.execute("PRAGMA integrity_check").fetchone() != ("ok",))
        done = journal.execute("SELECT count(*) FROM pictures WHERE state = 1").fetchone()[0]
        found["broken_journals"] += int(done != len(reference) - failed)
    return found


class Torture:
    """The faults, over one list of prompts.

    Args:
        folder: to work in.
        count: pictures a folder.
        steps: of the solver.
        devices: as for `genpipe render`.
    """

    def __init__(self, folder: Path, count: int, steps: int, devices: str, rng: random.Random) -> None:
        self.folder, self.rng, self.devices = folder, rng, devices
        self.steps = steps
        self.rows = prompts(count)
        self.input = folder / "prompts.jsonl"
        self.input.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self.found: Found = Counter()
        started = time.perf_counter()
        self._run(folder / "reference")
        self.seconds = time.perf_counter() - started
        self.reference = pixels(folder / "reference")
        assert len(self.reference) == count

    def options(self, **changes: Any) -> Options:
        return Options.of(settings={"steps": self.steps}, deterministic=True, batch=4, **changes)

    def _run(self, out: Path, engine: Any = None, **changes: Any) -> Run:
        run = Run(self.input, out, self.options(**changes), engine=engine or LocalEngine(self.devices))
        for _ in run.pictures():
            pass
        return run

    def kills(self, count: int, say: Any) -> None:
        """Kill coordinators and workers, so many in all."""
        done = 0
        while done < count:
            out = self.folder / f"killed-{done}"
            while done < count:
                whom = "coordinator" if self.rng.random() < 0.6 else "worker"
                if not self._one_kill(out, whom):
                    break
                done += 1
                self.found[f"killed_{whom}s"] += 1
                say(f"kill {done}: a {whom}")
            self._run(out)
            self.found += compare(out, self.reference)
            shutil.rmtree(out)

    def _one_kill(self, out: Path, whom: str) -> bool:
        """Start the command, kill, and wait for its end; False if it ended before. A worker's death it survives."""
        command = [
            *(
                sys.executable,
                "-m",
                "genpipe",
                "render",
                str(self.input),
                "--out",
                str(out),
                "--steps",
                str(self.steps),
            ),
            *("--deterministic", "--batch", "4", "--devices", self.devices, "--quiet"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.perf_counter() + self.rng.uniform(0, 1.2 * self.seconds)
        victims: list[int] = []
        while process.poll() is None and (time.perf_counter() < deadline or (whom == "worker" and not victims)):
            victims = children(process.pid)
            time.sleep(0.01)
        if process.poll() is not None:
            return False
        if whom == "worker":
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(victims), signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        return True

    def full_disk(self) -> None:
        """A file system that is too small for all images, then one with room.

        A tmpfs; where that cannot be mounted, or the pictures are small beside the journal, a writer that says so.
        """
        out = self.folder / "full"
        out.mkdir()
        size = sum(path.stat().st_size for path in (self.folder / "reference" / "images").rglob("*.png"))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size // 2 + 300_000}", "tmpfs", str(out)]
        mounted = subprocess.run(mount if size > 800_000 else ["false"], capture_output=True, check=False)
        try:
            limit = {} if mounted.returncode == 0 else {"engine": self._engine(full_after=len(self.rows) // 2)}
            try:
                self._run(out, **limit)
                self.found["wrong_failures"] += 1
            except OSError:
                self.found["full_disks"] += 1
            if mounted.returncode == 0:
                subprocess.run(["mount", "-o", f"remount,size={4 * size + 10_000_000}", str(out)], check=True)
            self._run(out)
            self.found += compare(out, self.reference)
        finally:
            if mounted.returncode == 0:
                subprocess.run(["umount", "-l", str(out)], check=True)

    def out_of_memory(self) -> None:
        """Memory that runs out in one of the batches."""
        out = self.folder / "memory"
        self._run(out, engine=self._engine(memory_at=self.rng.randrange(len(self.rows))))
        self.found["out_of_memory"] += 1
        self.found += compare(out, self.reference)

    def nan(self) -> None:
        """NaN in one image: it fails, the others do not; tried again, it is drawn."""
        out = self.folder / "nan"
        row = self.rng.randrange(len(self.rows))
        run = self._run(out, engine=self._engine(nan_in=self.rows[row]["prompt"]))
        self.found["nan"] += 1
        poisoned = [row["prompt"] for row in self.rows].count(self.rows[row]["prompt"])
        self.found["wrong_failures"] += int(run.failed != poisoned)
        self.found += compare(out, self.reference, failed=poisoned)
        self._run(out, retry_failed=True)
        self.found += compare(out, self.reference)

    def ray(self) -> None:
        """An actor that is killed between two images."""
        try:
            from genpipe.workers.ray_engine import RayEngine

            engine = RayEngine(devices="cpu:1")
        except ValueError:
            return
        out = self.folder / "ray"
        run = Run(self.input, out, self.options(), engine=engine)
        for count, _ in enumerate(run.pictures()):
            if count == len(self.rows) // 3:
                engine.kill_one()
        self.found["killed_actors"] += 1
        self.found += compare(out, self.reference)

    def _engine(self, **faults: Any) -> LocalEngine:
        return LocalEngine(self.devices, [sys.executable, __file__, "--worker", json.dumps(faults)])


def children(pid: int) -> list[int]:
    """The processes that this one started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def poisoned_worker(memory_at: int | None = None, nan_in: str | None = None, full_after: int | None = None) -> None:
    """A worker's process with one fault."""
    import torch

    from genpipe.models.finite import NonFiniteError
    from genpipe.workers import process
    from genpipe.workers.renderer import Renderer
    from genpipe.workers.storage import Folder

    streamed, written = [0], [0]

    def make(job: Any, device: str | None) -> Renderer:
        renderer = Renderer(job, device)
        stream = renderer.pipeline.stream

        def poisoned(requests: Any) -> Any:
            streamed[0] += 1
            if streamed[0] - 1 == memory_at:
                raise torch.OutOfMemoryError("out of memory")
            for state in stream(requests):
                if any(request.prompt == nan_in for request in requests):
                    raise NonFiniteError("NaN was put into this picture")
                yield state

        renderer.pipeline.stream = poisoned
        return renderer

    if full_after is not None:
        write = Folder.write

        def limited(self: Folder, path: str, data: bytes, **how: Any) -> None:
            written[0] += 1
            if written[0] > full_after:
                raise OSError(28, "No space left on device", path)
            write(self, path, data, **how)

        Folder.write = limited
    process.main(make)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of coordinators and workers (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=40, help="a folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of the solver (default: %(default)s)")
    parser.add_argument("--devices", default="cpu:2", help="as for genpipe render (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker is not None:
        poisoned_worker(**json.loads(args.worker))
        return 0

    def say(text: str) -> None:
        if not args.json:
            print(text, flush=True)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        torture = Torture(Path(folder), args.pictures, args.steps, args.devices, random.Random(args.seed))
        say(f"undisturbed, {args.pictures} pictures took {torture.seconds:.1f} s")
        torture.kills(args.kills, say)
        for fault in (torture.full_disk, torture.out_of_memory, torture.nan, torture.ray):
            fault()
            say(f"{fault.__name__}: {dict(torture.found)}")
    found = torture.found
    bad = ("lost", "duplicated", "differing", "partial", "broken_journals", "wrong_failures")
    faults = {key: found[key] for key in found if key != "expected" and key not in bad}
    result = {
        "faults_tried": sum(faults.values()),
        "faults": faults,
        "pictures_expected": found["expected"],
        **{key: found[key] for key in bad},
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(result))
    return int(any(found[key] for key in bad))


if __name__ == "__main__":
    sys.exit(main())
