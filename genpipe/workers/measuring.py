"""The batch size of a shape on this device: found by drawing, or kept from an earlier run."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

import genpipe
from genpipe.hardware import device_name, free_memory, peak_memory
from genpipe.pipeline import Pipeline
from genpipe.pipeline.best_of import candidates
from genpipe.pipeline.progress import Progress
from genpipe.request import Request
from genpipe.workers.batch_size import NO_GAIN, Memory, best_size, search_pays
from genpipe.workers.chunks import free_unused, is_out_of_memory
from genpipe.workers.kept_sizes import KeptSizes

# The largest batch, by the kind of device.
LARGEST = {"cuda": 512, "mps": 16, "cpu": 16}
# Pixels of a batch that fill a GPU about: the first that is tried there, and what is drawn while nothing is known.
GPU_PIXELS = 16 * 512 * 512
# By which share a GPU may be faster with twice as many.
HOPED = 0.05
# Solver steps of what is drawn to measure.
STEPS = 2
# A run has at least so many batches, so that one is written while the next is drawn.
BATCHES = 4


@dataclass(frozen=True)
class Drawn:
    """What it took to draw a batch: how many images it had, and the seconds of its first step and of each other one."""

    count: int
    first: float
    step: float


class Watch:
    """Looks on while batches are drawn that have to be drawn anyhow, the first of their shape.

    Attributes:
        drawn: what the first batch took that was drawn to its end; None before.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.drawn: Drawn | None = None
        self._device, self._clock = device, clock

    def over(self, states: Iterator[Progress], count: int) -> Iterator[Progress]:
        """Give the steps of a batch of so many images as they come."""
        started, first, steps = self._clock(), 0.0, 0
        for state in states:
            if not steps:
                first = self._now() - started
            steps = state.step
            yield state
        if self.drawn is None and steps:
            later = self._now() - started - first
            self.drawn = Drawn(count, first, later / (steps - 1) if steps > 1 else first)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return self._clock()


def measured_size(
    pipeline: Pipeline,
    request: Request,
    *,
    waiting: int,
    drawn: Drawn | None = None,
    depends_on: Mapping[str, Any],
    kept: KeptSizes,
    pixels: int | None = None,
    memory: Callable[[], Memory] | None,
    clock: Callable[[], float] = time.perf_counter,
    each_step: Callable[[], None] = lambda: None,
) -> tuple[int, str]:
    """Find how many images like one a batch should take.

    Args:
        request: one of them.
        waiting: how many there are to draw.
        drawn: what a batch of them took; where trying other sizes would cost more than it may save, none is tried. None
            tries them in any case.
        depends_on: what the finding depends on besides device and versions: the model, the dtype, the shape, ….
        kept: the findings of earlier runs.
        pixels: of a batch that fills the device about, to begin with; None begins with one image.
        memory, clock: see `best_size`.
        each_step: called after each step that is drawn; what it raises ends the search.

    Returns:
        The size, and a line that says why.

    Raises:
        MemoryError: not even one image fits.
        Exception: whatever else drawing raises.
    """
    device = pipeline.device
    limit = max(1 if drawn is None else drawn.count, min(LARGEST[device.type], waiting // BATCHES))
    name = device_name(device)
    room = None if memory is None else memory().limit
    depends_on = {
        **depends_on,
        "device": name,
        # Within a factor of two: what else is on the device differs from run to run.
        "memory": None if room is None else (room >> 30).bit_length(),
        "genpipe": genpipe.__version__,
        "torch": torch.__version__,
    }
    where = f"for images of {request.width}x{request.height} on {name}"
    size = kept.get(depends_on, waiting)
    if size is not None:
        size = min(size, limit)
        return size, f"batches of {size} {where}: found by an earlier run"
    steps, hoped = min(STEPS, request.steps), 1.0 if pixels is None else HOPED
    runs = waiting * request.steps / steps  # images, each drawn as it is to measure
    if drawn is not None:
        seconds = steps * drawn.step
        if not search_pays(drawn.count, seconds, seconds - drawn.step + drawn.first, waiting=runs, hoped=hoped):
            rate = drawn.count / drawn.step
            return drawn.count, f"batches of {drawn.count} {where}: {NO_GAIN} (steps per second {rate:.3g})"
    made = candidates(replace(request, steps=steps), limit)

    def draw(count: int) -> None:
        try:
            for _ in pipeline.stream(made[:count]):
                each_step()
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError from error
            raise

    first = 1 if pixels is None else 2 ** int(math.log2(max(1, pixels // (request.width * request.height))))
    try:
        found = best_size(
            draw,
            limit=limit,
            waiting=runs,
            first=first,
            hoped=hoped,
            memory=memory,
            clock=clock,
        )
    finally:
        free_unused()
    kept.keep(depends_on, found.size, None if found.is_final else waiting)
    rates = ", ".join(f"{size}: {rate * steps:.3g}" for size, rate in sorted(found.rates.items()))
    return found.size, f"batches of {found.size} {where}: {found.why} (steps per second {rates})"


def device_memory(device: torch.device) -> Callable[[], Memory] | None:
    """Give what tells a device's memory; None where the system does not say.

    It counts a GPU's peak anew from each look, and a CPU's from the start of the process.
    """
    if device.type == "cuda":
        return lambda: _cuda_memory(device)
    if device.type == "cpu" and free_memory(device) is not None:
        return lambda: Memory(peak_memory(), peak_memory() + (free_memory(device) or 0))
    return None


def _cuda_memory(device: torch.device) -> Memory:
    used = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return Memory(used, torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
