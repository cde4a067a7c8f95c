"""The coordinator of a run: reads, plans, hands batches to an engine, journals what comes back. Never imports torch."""

import hashlib
import json
import math
import sqlite3
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import genpipe
from genpipe.messages import LINE, one_line
from genpipe.render.finish import finish
from genpipe.render.folder import OutputFolder, image_path
from genpipe.render.identity import canonical_json
from genpipe.render.journal import DONE, FAILED, Entry, Journal
from genpipe.render.options import Options
from genpipe.render.packing import Batch, Packer, pixels_of
from genpipe.render.planning import Planner
from genpipe.render.recorded import inputs_are_as_recorded
from genpipe.render.rendered import Rendered
from genpipe.render.results import Report
from genpipe.render.rows import Row, read_rows
from genpipe.workers.engines import Engine, Event, LocalEngine
from genpipe.workers.messages import Model, Result, Task, Work

# Images per batch where nothing was measured and a worker does not say.
BATCH = 8
# Batches of a shape from which on a worker finds out how large they should be.
MANY = 8
# Batches that each worker gets at least of a shape that has enough images.
EACH = 2
# Deaths of workers over one batch: at the second it is taken apart, at the fourth its images are given up.
APART, GIVEN_UP = 2, 4


class Run:
    """One rendering of a list of prompts into a folder.

    `pictures()` does it; `stop()`, from a signal's handler, has it finish what is being drawn and end.

    Args:
        source: a file, "-" for standard input, or prompts, dicts and `Request`s.
        out: the folder; None keeps the images in memory.
        engine: by default this machine's processes.
        storage: fsspec URL that the images go to instead of `out`.
    """

    def __init__(
        self,
        source: str | Path | Iterable[Any],
        out: str | Path | None,
        options: Options,
        *,
        engine: Engine | None = None,
        storage: str | None = None,
    ) -> None:
        if out is not None and not str(out):
            raise ValueError("out '' is not a folder: say where the images go, or leave it out to keep them in memory")
        self.options = options
        self.engine: Engine = LocalEngine() if engine is None else engine
        self.report = Report()
        self.total = self.done = self.failed = self.rejected = self.repeated = 0
        self.stopped = False
        self._source = source
        self._kept = tempfile.TemporaryDirectory(prefix="genpipe-") if out is None else None
        self.folder = OutputFolder(Path(self._kept.name if out is None else out), storage)  # pyright: ignore
        self._flying: dict[int, Batch] = {}
        self._sizes: dict[str, int] = {}
        self._most: dict[str, int] = {}
        self._measured: set[str] = set()

    @property
    def left(self) -> int:
        """How many images are neither done nor failed."""
        return self.total - self.done - self.failed

    def stop(self) -> None:
        """Finish the batches in flight, then end."""
        self.stopped = True

    def pictures(self) -> Generator[Rendered, None, None]:
        """Render, yielding every image as it finishes or fails. What was finished before this run is not among them.

        Raises:
            ValueError: the input, the options or the folder cannot be used.
            OSError: files cannot be read or written; what is done is kept, and the same run again goes on.
        """
        with self.planned() as (journal, model):
            self._check_pictures(journal)
            counts = journal.counts()
            self.total, self.done, self.failed = sum(counts.values()), counts[DONE], counts[FAILED]
            started = time.perf_counter()
            try:
                for picture in self._draw(journal, model):
                    self.report.drawing = time.perf_counter() - started
                    yield picture
            except GeneratorExit:  # the caller has seen enough
                self._finish(journal, model)
                raise
            self.report.drawing = time.perf_counter() - started
            if missing := self._finish(journal, model):
                raise OSError(
                    f"{missing} of the images that were drawn are not in {self.folder.shown} any more: "
                    "the same command draws them again"
                )

    @contextmanager
    def planned(self) -> Iterator[tuple[Journal, Model]]:
        """Take the folder, start the engine and plan into the journal; let go of all of it afterwards. Errors as above."""
        rows = _peeked(read_rows(self._source))
        journal = self.folder.open()
        try:
            started = time.perf_counter()
            model = self.engine.open(self.options.job(self.folder.url))
            self.report.workers, self.report.startup = self.engine.workers, time.perf_counter() - started
            started = time.perf_counter()
            self._check_settings(journal, model)
            self._plan(journal, model, rows)
            self.report.planning = time.perf_counter() - started
            yield journal, model
        except sqlite3.Error as error:
            raise OSError(f"{journal.path}: {error}") from error
        finally:
            self.engine.close()
            journal.close()
            self.folder.close()
            if self._kept is not None:
                self._kept.cleanup()

    # Before drawing

    def _identity(self, model: Model) -> dict[str, Any]:
        """What determines images besides prompt, seed and settings."""
        options = self.options
        judged = {"best_of": options.best_of, "judge": options.judge} if options.best_of > 1 else {}
        return {"fingerprint": model.fingerprint, "dtype": model.dtype, **options.spec.drawn_by(), **judged}

    def _check_settings(self, journal: Journal, model: Model) -> None:
        """Refuse to mix images of other settings into the folder."""
        options = self.options
        now = {
            "genpipe": genpipe.__version__,
            "model": f"{model.name} ({model.fingerprint[:12]})",
            "dtype": model.dtype,
            "deterministic": options.deterministic,
            "format": options.format,
            "best_of": options.best_of,
            "judged": options.judged,
            **options.spec.drawn_by(),
            **dict(sorted(options.recorded.items())),
        }
        before = journal.get("settings")
        drawn = bool(journal.entries(state=DONE, plan=False, limit=1))
        if drawn and before != now and not options.force:
            before = before or {}
            changed = [
                f"{one_line(key, 40)} {_or_default(before.get(key))}, now {_or_default(now.get(key))}"
                for key in {**before, **now}
                if before.get(key) != now.get(key)
            ]
            shown = one_line(f"{self.folder.shown} was made with {', '.join(changed)}", LINE - 60)
            raise ValueError(f"{shown}: give a new --out, or --force to go on in it")
        journal.set("settings", now)

    def _plan(self, journal: Journal, model: Model, rows: Iterator[Row]) -> None:
        options = self.options
        identity = self._identity(model)
        source = self._source_hash([identity, options.recorded, options.n, options.seeds, options.format])
        known = source is not None and source == journal.get("source") and not options.strict
        if known and all(map(inputs_are_as_recorded, journal.all_settings())):
            self.rejected = sum(1 for _ in journal.rejects())
            return
        journal.set("results_are_written", False)
        planner = Planner(
            journal,
            model,
            identity=identity,
            settings=options.given,
            n=options.n,
            best_of=options.best_of,
            lora_dir=options.spec.lora_dir,
            seeds=options.seeds,
            suffix=options.suffix,
            strict=options.strict,
        )
        planner.plan(rows, source)
        self.rejected = planner.rejected
        self.repeated = planner.asked - sum(journal.counts().values())
        if planner.rejected and not planner.asked:
            line, reason, _ = next(journal.rejects())
            raise ValueError(f"none of the {planner.rejected} rows can be drawn; line {line}: {reason}")
        if not planner.asked:
            raise ValueError(f"{self._source!s:.200} has no prompts: give at least one")

    def _source_hash(self, plan: Any) -> str | None:
        """Hash the input file and all else that the plan depends on; None for what cannot be read twice."""
        if not isinstance(self._source, str | Path) or not Path(self._source).is_file():
            return None
        with open(self._source, "rb") as file:
            return (
                hashlib.file_digest(file, "sha256").hexdigest()
                + hashlib.sha256(canonical_json(plan).encode()).hexdigest()
            )

    def _check_pictures(self, journal: Journal) -> None:
        started = time.perf_counter()
        self.folder.check(journal, self.options.suffix, self.options.verify)
        if self.options.retry_failed:
            for window in journal.windows(state=FAILED):
                with journal:
                    journal.reset(entry.number for entry in window)
        self.report.planning += time.perf_counter() - started

    # Drawing

    def _draw(self, journal: Journal, model: Model) -> Iterator[Rendered]:
        packer = Packer(journal, partial(self.batch_size, model), distilled=model.traits.distilled)
        key, drained, batch = 0, False, packer.next()
        if batch is not None:
            journal.set("results_are_written", False)
        while self._flying or (batch is not None and not self.stopped):
            while batch is not None and not self.stopped and self.engine.room():
                key += 1
                self._flying[key] = batch
                self._submit(journal, model, key, batch)
                batch = packer.next()
            if self.stopped and not drained:
                self.engine.drain()
                drained = True
            event = self.engine.event(timeout=0.2)
            if event is not None:
                yield from self._settle(journal, packer, event)
            if batch is None and not self.stopped:
                batch = packer.next()

    def batch_size(self, model: Model, shape: str, left: int) -> int:
        """Say how many images a batch takes, of a shape of which so many are left."""
        if self.options.batch is not None:
            return self.options.batch
        # Asked for anew, it would shrink towards the end, and each size costs a GPU some time when it is new.
        most = self._most.setdefault(shape, max(1, math.ceil(left / (EACH * self.engine.workers))))
        size = BATCH if model.pixels is None else max(1, model.pixels // pixels_of(shape))
        return min(most, max(1, self._sizes.get(shape, size) // self.options.best_of))

    def _submit(self, journal: Journal, model: Model, key: int, batch: Batch) -> None:
        # Each worker draws its share of them.
        waiting = batch.waiting // self.engine.workers
        known = self.options.batch is not None or batch.shape in self._measured
        if known or batch.deaths or waiting < MANY * len(batch.entries):
            waiting = 0
        else:
            self._measured.add(batch.shape)
        tasks = [
            Task(
                entry.number,
                entry.id.hex(),
                image_path(entry, self.options.suffix),
                request_of(entry, journal.settings(entry.settings)),
            )
            for entry in batch.entries
        ]
        self.engine.submit(Work(key, tasks, batch.shape, waiting, alone=batch.deaths > 0))

    def _settle(self, journal: Journal, packer: Packer, event: Event) -> Iterator[Rendered]:
        self.folder.check_there()
        batch = self._flying.pop(event.key)
        result = event.result
        self.report.lost_workers = self.engine.lost
        if event.lost is not None:
            batch.deaths += 1
            result = self._after_death(packer, batch, event.lost)
        elif result is None:
            packer.give_back(batch)
        if result is None:
            return
        with journal:
            journal.done(
                [
                    (number, size, bytes.fromhex(digest), None if detail is None else json.dumps(detail))
                    for number, size, digest, detail in result.drawn
                ]
            )
            journal.failed(result.failed)
        if result.size is not None:
            self._sizes[batch.shape] = result.size
        self.report.add(result)
        self.done += len(result.drawn)
        self.failed += len(result.failed)
        entries = {entry.number: entry for entry in batch.entries}
        for number, _, _, detail in result.drawn:
            yield self._rendered(journal, entries[number], detail)
        for number, reason in result.failed:
            entry = entries[number]
            yield Rendered(entry, journal.settings(entry.settings), error=reason)

    def _after_death(self, packer: Packer, batch: Batch, how: str) -> Result | None:
        if batch.deaths >= GIVEN_UP:
            return Result(failed=[(entry.number, f"{how}, {batch.deaths} times over it") for entry in batch.entries])
        apart = [[entry] for entry in batch.entries] if batch.deaths >= APART else [batch.entries]
        for entries in apart:
            packer.give_back(Batch(entries, batch.shape, batch.deaths))
        return None

    def _rendered(self, journal: Journal, entry: Entry, detail: dict[str, Any] | None) -> Rendered:
        path = image_path(entry, self.options.suffix)
        read = partial(self.folder.files.read, path)
        shown = f"{self.folder.url}/{path}"
        if self._kept is not None:
            read, shown = partial(bytes, read()), None
            (self.folder.root / path).unlink()
        return Rendered(entry, journal.settings(entry.settings), path=shown, read=read, detail=detail)

    # After drawing

    def _finish(self, journal: Journal, model: Model) -> int:
        """Write the run's results; count the finished images that are gone."""
        if self._kept is not None:
            return 0
        missing = finish(journal, self.folder, self.options, model, self.report)
        self.done = journal.counts()[DONE]
        return missing


def _peeked(rows: Iterator[Row]) -> Iterator[Row]:
    """Read the first row before anything begins, so that what is wrong with the whole input is found out; give all rows."""
    first = next(rows, None)
    return iter(()) if first is None else chain([first], rows)


def request_of(entry: Entry, settings: dict[str, Any]) -> dict[str, Any]:
    """Give the request of an image as plain values, as it travels to workers."""
    return {"prompt": entry.prompt, "seed": entry.seed, **settings}


def _or_default(value: Any) -> str:
    return "the default" if value is None else one_line(str(value), 120)
