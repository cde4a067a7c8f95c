"""The batch size of a shape, on a pipeline whose time is a number: what is tried first, what is kept, what is said."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from genpipe.pipeline.progress import Progress
from genpipe.request import Request
from genpipe.workers.batch_size import Memory
from genpipe.workers.kept_sizes import KeptSizes
from genpipe.workers.measuring import Drawn, Watch, device_memory, measured_size

ON = {"model": "f" * 64, "shape": "00256x00256 steps=20"}


class Timed:
    """A pipeline that takes 50 ms for a batch and 1 ms for each image and step in it, of which `fits` fit."""

    device = torch.device("cpu")

    def __init__(self, fits: float = float("inf"), error: Exception | None = None) -> None:
        self.fits, self.error = fits, error or MemoryError()
        self.now, self.ran = 0.0, []

    def stream(self, requests: Sequence[Request]) -> Iterator[Any]:
        if len(requests) > self.fits:
            raise self.error
        assert {request.steps for request in requests} == {2}
        self.ran.append(len(requests))
        self.now += 0.05 + 0.001 * 2 * len(requests)
        yield

    def measured(
        self, kept: KeptSizes, waiting: int = 10**6, memory: Any = None, drawn: int = 1, **changes: Any
    ) -> tuple[int, str]:
        request = Request("a ship", seed=1, steps=20, guidance_scale=4.0, height=256, width=256)
        return measured_size(
            self,  # pyright: ignore[reportArgumentType]
            request,
            drawn=Drawn(drawn, 0.1, 0.025 + 0.001 * drawn),
            waiting=waiting,
            depends_on={**ON, **changes},
            kept=kept,
            memory=memory,
            clock=lambda: self.now,
            pixels=changes.get("pixels"),
        )


@pytest.fixture
def kept(tmp_path) -> KeptSizes:
    return KeptSizes(tmp_path / "sizes.json")


def test_a_finding_is_kept_and_said(kept):
    pipeline = Timed()
    size, said = pipeline.measured(kept)
    assert size == 16 and max(pipeline.ran) == 16
    assert (
        said.startswith("batches of 16 for images of 256x256 on ")
        and "no more are allowed" in said
        and "16: 390" in said
    )
    again = Timed()
    size, said = again.measured(kept)
    assert (size, again.ran) == (16, []) and said.endswith("found by an earlier run")
    other = Timed()
    other.measured(kept, shape="another")
    assert other.ran


def test_a_few_images_are_not_one_batch(kept):
    pipeline = Timed()
    size, _ = pipeline.measured(kept, waiting=20)
    assert size <= 5 and max(pipeline.ran) <= 5


def test_a_size_that_is_kept_is_cut_to_the_images_that_there_are(kept):
    kept_size, _ = Timed(fits=8).measured(kept)
    assert kept_size == 8
    assert Timed().measured(kept, waiting=16)[0] == 4


def test_where_trying_would_cost_more_than_it_saves_nothing_is_tried(kept):
    pipeline = Timed()
    size, said = pipeline.measured(kept, waiting=40, drawn=8, pixels=8 * 256 * 256)
    assert (size, pipeline.ran) == (8, []) and "8 for images of 256x256" in said
    assert "trying more would take longer than it saves (steps per second 242)" in said
    pipeline.measured(kept, waiting=10_000, drawn=8, pixels=8 * 256 * 256)
    assert pipeline.ran  # nothing was kept of it


def test_a_batch_that_is_drawn_tells_what_its_steps_take():
    device = Simulated(each=0.005, loading=0.7)
    watch = Watch(torch.device("cpu"), clock=lambda: device.now)
    assert [state.step for state in watch.over(device.stream(requests(16, steps=20)), 16)] == list(range(1, 21))
    assert watch.drawn is not None and watch.drawn.count == 16
    assert (watch.drawn.first, watch.drawn.step) == pytest.approx((0.78, 0.08))
    for _ in watch.over(device.stream(requests(3, steps=1)), 3):  # the first is what counts
        pass
    assert watch.drawn.count == 16
    alone = Watch(torch.device("cpu"), clock=lambda: device.now)
    list(alone.over(device.stream(requests(16, steps=1)), 16))
    assert alone.drawn is not None and (alone.drawn.first, alone.drawn.step) == pytest.approx((0.08, 0.08))


@dataclass
class Simulated:
    """A pipeline whose step takes `fixed` seconds and `each` more per image, and `loading` more the first time of a size."""

    each: float
    fixed: float = 0.0
    loading: float = 0.0
    device = torch.device("cpu")
    now: float = 0.0
    seen: set[int] = field(default_factory=set)

    def step(self, count: int) -> float:
        return self.fixed + self.each * count

    def stream(self, batch: Sequence[Request]) -> Iterator[Progress]:
        for step in range(1, batch[0].steps + 1):
            self.now += self.step(len(batch)) + (0 if len(batch) in self.seen else self.loading)
            self.seen.add(len(batch))
            yield Progress(step, batch[0].steps, torch.zeros(len(batch), 4, 1, 1), list)

    def render(self, count: int, kept: KeptSizes) -> float:
        """Draw so many images, as a worker does that has five batches of four at a time; give the seconds."""
        first, started = requests(4, steps=20), self.now
        watch = Watch(self.device, clock=lambda: self.now)
        list(watch.over(self.stream(first), 4))
        assert watch.drawn is not None
        made = 5 * 4
        size, _ = measured_size(
            self,  # pyright: ignore[reportArgumentType]
            first[0],
            drawn=watch.drawn,
            waiting=count - made,
            depends_on=ON,
            kept=kept,
            pixels=4 * 512 * 512,
            memory=None,
            clock=lambda: self.now,
        )
        left = count - 4
        while left:
            batch = min(left, 4 if left > count - made else size)
            list(self.stream(requests(batch, steps=20)))
            left -= batch
        return self.now - started


def requests(count: int, steps: int) -> list[Request]:
    return [Request("", seed=k, steps=steps, guidance_scale=7.5, height=512, width=512) for k in range(count)]


@pytest.mark.parametrize("loading", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("fixed", [0.0, 0.003, 0.02])  # of 0.09 seconds, which may be spared in a larger batch
@pytest.mark.parametrize("batches", [16, 32, 64, 256])
def test_finding_the_size_costs_no_twentieth_of_a_run(kept, batches, fixed, loading):
    """Of batches of 1.8 seconds, which is what 16 images of Stable Diffusion 1.5 take on an H100 in 20 steps."""
    device = Simulated(each=(0.09 - fixed) / 4, fixed=fixed, loading=loading)
    without = loading + batches * 20 * 0.09
    assert device.render(4 * batches, kept) < without / 0.95
    if fixed == 0.02 and batches == 256:
        assert device.render(4 * batches, kept) < without / 1.1  # a later run has it for nothing, and gains


def test_what_fills_the_device_is_tried_first(kept):
    pipeline = Timed()
    pipeline.measured(kept, pixels=9 * 256 * 256)
    assert pipeline.ran[0] == 8


def test_memory_that_runs_out_ends_the_search(kept):
    for number, error in enumerate((MemoryError(), torch.OutOfMemoryError("CUDA out of memory"))):
        size, said = Timed(fits=6, error=error).measured(kept, shape=str(number))
        assert size == 4 and "there is no memory for more" in said


def test_other_errors_are_not_taken_for_it(kept):
    with pytest.raises(ValueError, match="odd"):
        Timed(fits=2, error=ValueError("odd")).measured(kept)


def test_what_another_process_holds_is_not_counted_on(kept):
    pipeline = Timed()
    held = 5 << 30  # of 16 GiB; an image takes one

    def memory() -> Memory:
        return Memory(max([0, *pipeline.ran]) << 30, (16 << 30) - held)

    assert pipeline.measured(kept, memory=memory)[0] == 8 and max(pipeline.ran) == 8


def test_a_processors_memory_is_told():
    told = device_memory(torch.device("cpu"))
    if told is None:
        pytest.skip("this system does not say how much memory is free")
    assert 0 < told().used < told().limit
