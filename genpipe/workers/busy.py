"""How long a device has had work, whichever threads gave it some."""

import time
from collections.abc import Callable
from threading import Lock


class Busy:
    """A context that several threads may be in: counts the seconds in which at least one of them is.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, Lock()
        self._inside, self._since, self._seconds = 0, 0.0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = self._clock()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._seconds += self._clock() - self._since

    def take(self) -> float:
        """Give the seconds since the last call, those of threads that are still inside among them."""
        with self._lock:
            now = self._clock()
            if self._inside:
                self._seconds += now - self._since
                self._since = now
            taken, self._seconds = self._seconds, 0.0
        return taken
