"""The batch size of a shape, on a pipeline whose time is a number: what is tried first, what is kept, what is said."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from genpipe.request import Request
from genpipe.workers.batch_size import Memory
from genpipe.workers.kept_sizes import KeptSizes
from genpipe.workers.measuring import device_memory, measured_size

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

    def measured(self, kept: KeptSizes, waiting: int = 10**6, memory: Any = None, **changes: Any) -> tuple[int, str]:
        request = Request("a ship", seed=1, steps=20, guidance_scale=4.0, height=256, width=256)
        return measured_size(
            self,  # pyright: ignore[reportArgumentType]
            request,
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
