"""Several batches at a time on one worker: one prepared, one in the networks, others being written."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Condition, Lock
from typing import Any

from genpipe.workers.messages import Result, Work


class Turns:
    """What a `Renderer` does with batches, called by several threads: the networks are one thread's at a time."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self._preparing, self._networks = Lock(), Lock()
        self._begun, self._finished = 0, Condition()
        self._drained = False

    def draw(self, take: Callable[[], Work]) -> tuple[Work, Result | None]:
        """Draw the next batch to its files.

        Args:
            take: gives it, once it is this thread's turn.

        Returns:
            The batch and its result; None where `drain` came before the networks.
        """
        with self._preparing:
            work = take()
            if work.alone:
                return work, self._draw_alone(work)
            drawing = self._renderer.prepare(work.tasks)
            self._networks.acquire()  # before another batch may be prepared: this one comes first
        with ExitStack() as networks, self._counted():
            networks.callback(self._networks.release)
            if self._drained:
                return work, None
            drawing = self._renderer.begin(drawing, work.shape, work.waiting, networks.close)
            networks.close()
            return work, self._renderer.finish(drawing)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._finished:
            self._begun += 1
        try:
            yield
        finally:
            with self._finished:
                self._begun -= 1
                self._finished.notify_all()

    def _draw_alone(self, work: Work) -> Result | None:
        with self._networks, self._finished:
            self._finished.wait_for(lambda: not self._begun)
            if self._drained:
                return None
            drawing = self._renderer.begin(self._renderer.prepare(work.tasks), work.shape, work.waiting)
            return self._renderer.finish(drawing)

    def drain(self) -> None:
        """Begin nothing more."""
        self._drained = True
