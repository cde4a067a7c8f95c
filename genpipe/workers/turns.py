"""Several batches at a time on one worker: one prepared, one in the networks, others being written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from genpipe.workers.messages import Result, Task


@dataclass(frozen=True)
class Batch:
    """What a worker is to draw.

    Attributes:
        key: by which the coordinator knows it.
        tasks: its images.
        shape: what they have in common, as a text.
        waiting: how many images of this shape there are to draw, if the best size of a batch is to be found first; else 0.
    """

    key: int
    tasks: Sequence[Task]
    shape: str
    waiting: int


class Turns:
    """What a `Renderer` does with batches, called by several threads: the networks are one thread's at a time."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self._preparing, self._networks = Lock(), Lock()
        self._drained = False

    def draw(
        self, take: Callable[[], Batch], begun: Callable[[Batch], None] = lambda batch: None
    ) -> tuple[Batch, Result | None]:
        """Draw the next batch to its files.

        Args:
            take: gives it, once it is this thread's turn.
            begun: called when the networks begin it.

        Returns:
            The batch and its result; None where `drain` came before the networks.
        """
        with self._preparing:
            batch = take()
            drawing = self._renderer.prepare(batch.tasks)
            self._networks.acquire()  # before another batch may be prepared: this one comes first
        try:
            if self._drained:
                return batch, None
            begun(batch)
            drawing = self._renderer.begin(drawing, batch.shape, batch.waiting)
        finally:
            self._networks.release()
        return batch, self._renderer.finish(drawing)

    def drain(self) -> None:
        """Begin nothing more."""
        self._drained = True
