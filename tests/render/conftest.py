"""An engine that draws in this process, so that a test of the coordinator need not start another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from genpipe.render import Options, Run
from genpipe.workers.engines import Event
from genpipe.workers.kept_sizes import KeptSizes
from genpipe.workers.messages import Job, Model, Task
from genpipe.workers.renderer import Renderer

DEFAULTS = {"height": 32, "width": 32, "steps": 2, "guidance_scale": 4.0, "guidance_rescale": 0.0}
MODEL = Model("tiny", "f" * 64, "float32", {"": DEFAULTS, "lcm": DEFAULTS}, 4, 3)


class Inline:
    """Draws each batch when it is asked for news."""

    workers = 1

    def __init__(self) -> None:
        self.batches: list[list[Task]] = []
        self.renderer: Any = None
        self._waiting: list[tuple[int, list[Task], str, int]] = []

    def open(self, job: Job) -> Model:
        self.renderer = Renderer(job, "cpu", kept=KeptSizes(Path(job.out) / ".genpipe/batch_sizes.json"))
        return self.renderer.model()

    def room(self) -> bool:
        return len(self._waiting) < 2

    def submit(self, key: int, tasks: Sequence[Task], shape: str, waiting: int) -> None:
        self._waiting.append((key, list(tasks), shape, waiting))

    def event(self, timeout: float) -> Event | None:
        key, tasks, shape, waiting = self._waiting.pop(0)
        self.batches.append(tasks)
        return Event(key, self.renderer.finish(self.renderer.begin(self.renderer.prepare(tasks), shape, waiting)))

    def drain(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def inline() -> Inline:
    return Inline()


@pytest.fixture
def run(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Run]:
    """Render with the tiny checkpoint in fp32, in this process, to the end or until `stop_after` pictures."""

    def run(source: Any, out: Path | str | None = "out", engine: Any = None, stop_after: int = 0, **values: Any) -> Run:
        settings = {"steps": 2, **values.pop("settings", {})}
        options = Options.of(**{"model": str(tiny_checkpoint), "dtype": "fp32", **values, "settings": settings})
        made = Run(source, None if out is None else tmp_path / out, options, engine=engine or Inline())
        for count, _ in enumerate(made.pictures(), start=1):
            if count == stop_after:
                made.stop()
        return made

    return run
