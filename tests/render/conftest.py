"""An engine that draws in this process, so that a test of the coordinator need not start another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genpipe.fit import Traits
from genpipe.render import Options, Run
from genpipe.workers.engines import Event
from genpipe.workers.kept_sizes import KeptSizes
from genpipe.workers.messages import Job, Model, Task, Work
from genpipe.workers.renderer import Renderer

DEFAULTS = {"height": 32, "width": 32, "steps": 2, "guidance_scale": 4.0, "guidance_rescale": 0.0}
MODEL = Model("tiny", "f" * 64, "float32", {"": DEFAULTS, "lcm": DEFAULTS}, Traits(factor=4, tile_factor=4, layers=3))


class Inline:
    """Draws each batch when it is asked for news."""

    workers, lost = 1, 0

    def __init__(self) -> None:
        self.batches: list[list[Task]] = []
        self.renderer: Any = None
        self._waiting: list[Work] = []

    def open(self, job: Job) -> Model:
        self.renderer = Renderer(job, "cpu", kept=KeptSizes(Path(job.out) / ".genpipe/batch_sizes.json"))
        return self.renderer.model()

    def room(self) -> bool:
        return len(self._waiting) < 2

    def submit(self, work: Work) -> None:
        self._waiting.append(work)

    def event(self, timeout: float) -> Event | None:
        work = self._waiting.pop(0)
        self.batches.append(list(work.tasks))
        begun = self.renderer.begin(self.renderer.prepare(work.tasks), work.shape, work.waiting)
        return Event(work.key, self.renderer.finish(begun))

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
