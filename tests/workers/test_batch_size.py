"""The search for the best size of a batch, on simulated devices: a clock and a network that are numbers."""

import random
from dataclasses import dataclass, field

import pytest

from genpipe.workers.batch_size import BatchSize, Memory, best_size

DAY = 86400.0


@dataclass
class Device:
    """A device that is simulated: what a run takes, and what is slow or random about it.

    Attributes:
        fixed, each: seconds of a run, and of each image in it.
        knee, slower: from so many images on each takes longer, at most by this share.
        fits: images that its memory holds.
        loading: seconds that the first run of a size takes beside.
        noise: by which share others may slow a run down.
    """

    fixed: float
    each: float
    knee: float = float("inf")
    slower: float = 0.0
    fits: float = float("inf")
    loading: float = 0.0
    noise: float = 0.0
    seed: int = 0
    now: float = 0.0
    ran: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def seconds(self, size: int) -> float:
        beyond = max(0.0, size / self.knee - 1)
        return self.fixed + size * self.each * (1 + self.slower * beyond / (1 + beyond))

    def run(self, size: int) -> None:
        if size > self.fits:
            raise MemoryError
        self.now += self.seconds(size) * (1 + self.noise * self._random.random())
        if size not in self.ran:
            self.now += self.loading
        self.ran.append(size)

    def memory(self) -> Memory:
        """Of a device of 4 + `fits` bytes, of which the weights take 4."""
        return Memory(4 + (self.ran[-1] if self.ran else 0), 4 + int(self.fits))

    def found(self, *, limit: int = 64, waiting: float = 1e9, first: int = 1, memory: bool = False) -> BatchSize:
        told = self.memory if memory else None
        return best_size(self.run, limit=limit, waiting=waiting, first=first, memory=told, clock=lambda: self.now)

    def share_of_best(self, size: int, limit: int) -> float:
        """The throughput of a size by that of the best one that is allowed and fits."""
        rates = [n / self.seconds(n) for n in (2**k for k in range(12)) if n <= limit and n <= self.fits]
        return size / self.seconds(size) / max(rates)


def random_device(seed: int) -> Device:
    """A device from a slow CPU to a fast GPU, whose best size may be any."""
    rng = random.Random(seed)
    each = 10 ** rng.uniform(-4, -0.5)
    return Device(
        fixed=each * 10 ** rng.uniform(-1, 2.2),
        each=each,
        knee=2 ** rng.uniform(3, 9),
        slower=rng.choice([0.0, rng.uniform(0.1, 0.6)]),
        fits=rng.choice([float("inf"), 2 ** rng.uniform(1, 8)]),
        loading=rng.uniform(0.1, 3),
        noise=0.2,
        seed=seed,
    )


@pytest.mark.parametrize(("limit", "first"), [(16, 1), (512, 1), (512, 4)])
def test_it_is_right_on_a_hundred_noisy_devices(limit, first):
    """Right is a size of at least 95 % of the best one's throughput, where any run may take up to 20 % longer than it
    should and a day's work is waiting."""
    for seed in range(100):
        device = random_device(seed)
        found = device.found(limit=limit, waiting=DAY / device.each, first=first)
        assert device.share_of_best(found.size, limit) >= 0.95, (seed, found)


def test_a_first_run_that_is_slow_is_not_counted():
    # As on a GPU that had 206 images per second at 64 and was given one at a time.
    found = Device(fixed=0.05, each=0.004, loading=2.0).found(limit=64)
    assert found.size == 64 and not found.is_final and found.why == "no more are allowed"
    assert found.rates[1] == pytest.approx(1 / 0.054)


def test_growing_ends_when_two_larger_sizes_are_no_faster():
    device = Device(fixed=0.001, each=0.1)
    found = device.found(limit=512)
    assert found.is_final and found.why == "larger ones are no faster" and max(device.ran) == 4 and found.size == 1


def test_the_first_size_is_halved_where_it_does_not_fit():
    device = Device(fixed=1.0, each=0.01, fits=20)
    found = device.found(limit=512, first=64)
    assert found.size == 16 and max(device.ran) == 16 and found.why == "there is no memory for more"


def test_smaller_sizes_than_the_first_are_tried_where_larger_ones_are_no_faster():
    device = Device(fixed=0.0, each=0.1)
    assert device.found(first=8).size == 1
    assert Device(fixed=0.4, each=0.1, knee=8, slower=5.0).found(first=16).size == 8


def test_sizes_that_cost_hardly_more_are_passed_over():
    device = Device(fixed=1.0, each=0.001)
    assert device.found(limit=512).size == 512
    assert list(dict.fromkeys(device.ran)) == [1, 2, 8, 32, 128, 512]


def test_of_equals_the_smallest_is_chosen():
    assert Device(fixed=0.0, each=0.01).found().size == 1
    assert Device(fixed=0.01, each=0.01, knee=8, slower=1.0).found().size == 8


def test_what_runs_out_of_memory_is_not_chosen():
    found = Device(fixed=1.0, each=0.01, fits=20).found()
    assert (found.size, found.why) == (16, "there is no memory for more") and found.is_final


def test_memory_is_looked_at_before_it_runs_out():
    device = Device(fixed=1.0, each=0.01, fits=40)
    assert device.found(memory=True).size == 32 and max(device.ran) == 32
    # A quarter more than nine tenths of it is not even tried.
    device = Device(fixed=1.0, each=0.01, fits=33)
    assert device.found(memory=True).size == 16 and max(device.ran) == 16


def test_without_memory_for_one_there_is_no_size():
    with pytest.raises(MemoryError):
        Device(fixed=1.0, each=0.01, fits=0).found()


def test_other_errors_are_not_hidden():
    def broken(size: int) -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        best_size(broken, limit=4, waiting=100)


def test_short_runs_are_repeated_until_they_can_be_timed():
    device = Device(fixed=0.0001, each=0.0001)
    device.found(limit=1)
    assert device.now >= 0.1 and len(device.ran) > 400


def test_a_search_pays_or_costs_little():
    for seed in range(40):
        device = random_device(seed)
        waiting = 600 / device.each  # ten minutes at least
        usual = max(size for size in (1, 2, 4, 8) if size <= device.fits)
        found = device.found(limit=512, waiting=waiting)
        whole = device.now + waiting * device.seconds(found.size) / found.size
        assert whole < 1.15 * waiting * device.seconds(usual) / usual, (seed, found)


def test_a_search_that_could_save_nothing_ends():
    device = Device(fixed=0.5, each=1.0)
    found = device.found(limit=512, waiting=100)
    assert found.why == "trying more would take longer than it saves" and not found.is_final and max(device.ran) <= 4


def test_the_limit_is_kept():
    device = Device(fixed=1.0, each=0.001)
    assert device.found(limit=12).size == 8 and max(device.ran) == 8
