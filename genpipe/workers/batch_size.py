"""How many images to put through a network together: measured, not guessed.

Nothing here knows networks or devices: what runs, the memory and the clock are arguments.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

# A larger size is worth its memory if it is faster by this share; of sizes that differ by less than CLOSE the smallest is
# chosen.
GAIN, CLOSE = 0.03, 0.02
# Sizes in a row that are no faster, after which larger ones are not tried.
FLAT = 2
# Twice as many images took hardly longer where they took less than so many times as long.
HARDLY = 1.2
# Seconds that a timing takes at least; a shorter run is repeated.
SHORTEST = 0.05
# By how much others on the machine may slow a timing down, and how often sizes within that are timed.
NOISE, TIMINGS = 0.25, 16
# The share of the time of all waiting images that telling near equals apart may take.
SHARE = 0.02
# The share of the memory that a size may be expected to need.
ROOM = 0.9


class Memory(NamedTuple):
    """A device's memory in bytes: the most that was held since the last look, and how much may be held."""

    used: int
    limit: int


@dataclass(frozen=True)
class BatchSize:
    """What was found.

    Attributes:
        size: images per batch.
        rates: images per second of every size that was timed.
        why: why no larger size was tried, in a few words.
    """

    size: int
    rates: dict[int, float]
    why: str

    @property
    def is_final(self) -> bool:
        """Whether the same would be found for any number of images."""
        return self.why in (_NO_FASTER, _NO_MEMORY)


def best_size(
    run: Callable[[int], None],
    *,
    limit: int,
    waiting: float,
    first: int = 1,
    hoped: float = 1.0,
    memory: Callable[[], Memory] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSize:
    """Find the number of images per batch with which the most images are done per second.

    Sizes are doubled, or taken times four where a run of twice as many took hardly longer. Each runs once unseen, since the
    first run of a shape loads or compiles its kernels, and is then timed twice, of which the better timing counts: what else
    the machine does only ever slows a run down. Larger sizes are tried until two in a row are no faster, memory would not
    suffice, or trying takes longer than it could save. Sizes that are about as fast as the best are then timed again, in
    turn, and of equals the smallest is chosen.

    Args:
        run: draws so many images and waits for them; raises MemoryError where they do not fit.
        limit: the largest size.
        waiting: how many images, each drawn as `run` draws it, the finding is for.
        first: the size to begin with; smaller ones are tried where it does not fit, or larger ones are no faster.
        hoped: the share by which the second size may be faster than the first.
        memory: tells the memory, to stop before it runs out; None relies on MemoryError.
        clock: gives seconds.

    Raises:
        MemoryError: not even one image fits.
    """
    search = _Search(run, limit, waiting, min(first, limit), hoped, memory, clock)
    while True:
        why = search.grow()
        if why == _NO_FASTER:
            search.shrink()
        search.compare()
        if why != _NO_FASTER or not search.is_growing:  # noise may have hidden that it is
            break
    rates = search.rates
    enough = (1 - CLOSE) * max(rates.values())
    return BatchSize(min(size for size, rate in rates.items() if rate >= enough), rates, why)


_NO_FASTER = "larger ones are no faster"
_NO_MEMORY = "there is no memory for more"
NO_GAIN = "trying more would take longer than it saves"


def search_pays(size: int, seconds: float, first: float, *, waiting: float, hoped: float) -> bool:
    """Tell whether `best_size`, after a batch that was drawn anyhow, may save more time than trying one more size takes.

    Args:
        size: images that were drawn together.
        seconds: that `run` takes for so many.
        first: that it took the first time.
        waiting, hoped: see `best_size`.
    """
    cost = max(seconds, first) + seconds + 2 * (max(SHORTEST, seconds) + max(SHORTEST, 2 * seconds))
    return cost < waiting * seconds / size * hoped / (1 + hoped)


@dataclass
class _Search:
    run: Callable[[int], None]
    limit: int
    waiting: float
    first: int
    hoped: float
    memory: Callable[[], Memory] | None
    clock: Callable[[], float]
    seconds: dict[int, float] = field(default_factory=dict)  # of a run, by size: the best timing
    used: dict[int, int] = field(default_factory=dict)  # bytes, by size
    unseen: float = 0.0  # seconds of the last first run of a size
    end: str = "no more are allowed"  # why larger sizes than `limit` are not tried

    @property
    def rates(self) -> dict[int, float]:
        return {size: size / seconds for size, seconds in self.seconds.items()}

    @property
    def is_growing(self) -> bool:
        """Whether the largest size is faster than all others."""
        *others, largest = (self.rates[size] for size in sorted(self.seconds))
        return largest > (1 + GAIN) * max(others, default=0.0)

    def grow(self) -> str:
        """Time larger sizes for as long as there may be a gain in it; say why there is none."""
        if self.memory is not None and not self.used:
            self.used[0] = self.memory().used
        flat = 0
        while flat < FLAT:
            size = self._next()
            if size > self.limit:
                return self.end
            if not self._fits(size):
                self._end_before(size)
                continue
            if not self._pays(size):
                return NO_GAIN
            best = max(self.rates.values(), default=0.0)
            try:
                self._try(size)
            except MemoryError:
                self.seconds.pop(size, None)
                if size == 1:
                    raise
                self._end_before(size)
                continue
            flat = 0 if self.rates[size] > (1 + GAIN) * best else flat + 1
        return _NO_FASTER

    def _next(self) -> int:
        if not self.seconds:
            return self.first
        *others, last = sorted(self.seconds)
        if others and 4 * last <= self.limit:
            # How much longer twice as many took.
            longer = (self.seconds[last] / self.seconds[others[-1]]) ** (1 / math.log2(last / others[-1]))
            if longer < HARDLY:
                return 4 * last
        return 2 * last

    def _end_before(self, size: int) -> None:
        self.limit, self.end = size - 1, _NO_MEMORY
        self.first = max(1, self.first // 2)

    def shrink(self) -> None:
        """Time smaller sizes for as long as they are about as fast as the fastest, and it does not take long."""
        while (size := min(self.seconds)) > 1:
            best = max(self.rates.values())
            cost = self.unseen + 2 * max(SHORTEST, self.seconds[size] / 2)
            if self.rates[size] < (1 - GAIN) * best or cost > SHARE * self.waiting / best:
                break
            self._try(size // 2)

    def compare(self) -> None:
        """Time in turn, again and again, the sizes that may be the fastest."""
        best = max(self.rates.values())
        close = [size for size, rate in self.rates.items() if rate > (1 - NOISE) * best]
        seconds = sum(max(self.seconds[size], SHORTEST) for size in close)
        rounds = min(TIMINGS - 2, int(SHARE * self.waiting / best / seconds)) if len(close) > 1 else 0
        for _ in range(rounds):
            for size in close:
                self._time(size)

    def _try(self, size: int) -> None:
        started = self.clock()
        self.run(size)
        self.unseen = self.clock() - started
        if self.memory is not None:
            self.used[size] = self.memory().used
        self._time(size)
        self._time(size)

    def _time(self, size: int) -> None:
        started, count, passed = self.clock(), 0, 0.0
        while passed < SHORTEST:
            self.run(size)
            count, passed = count + 1, self.clock() - started
        self.seconds[size] = min(self.seconds.get(size, float("inf")), passed / count)

    def _fits(self, size: int) -> bool:
        """Whether the memory that the last sizes used leaves room for this one; it grows evenly with the size."""
        if self.memory is None or len(self.used) < 2:
            return True
        (low, used_low), (high, used_high) = sorted(self.used.items())[-2:]
        needed = used_high + (size - high) * max(0, used_high - used_low) / (high - low)
        return needed <= ROOM * self.memory().limit

    def _pays(self, size: int) -> bool:
        """Whether trying a size takes less time than it may save.

        Of a run that takes a + b n seconds for n images, where a doubling of n has gained the share g of the rate, the next
        one gains g / (2 - g).
        """
        if not self.seconds:
            return True
        *others, last = sorted(self.seconds)
        gain = self.hoped
        if others:
            doublings = math.log2(last / others[-1])
            gained = min(1.0, max((self.rates[last] / self.rates[others[-1]]) ** (1 / doublings) - 1, GAIN))
            gain = gained / (2 - gained)
        saving = self.waiting / max(self.rates.values()) * gain / (1 + gain)
        cost = self.unseen + 2 * max(SHORTEST, self.seconds[last] * size / last)
        return cost < saving
