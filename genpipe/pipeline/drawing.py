"""The loop that draws a list of requests, batch by batch."""

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from genpipe.images import Picture
from genpipe.pipeline.progress import Progress
from genpipe.progress import Progress as Shown
from genpipe.request import Request

# Images that go through the networks together; more requests are taken in turn, so memory stays flat.
BATCH = 8


def draw(
    requests: Sequence[Request],
    stream: Callable[[Sequence[Request]], Iterator[Progress]],
    decode: Callable[[Tensor, Sequence[Request]], list[Picture]],
    *,
    batch: int = BATCH,
    progress: bool = True,
    callback: Callable[[Progress], None] | None = None,
) -> list[Picture]:
    """Draw requests, `batch` of them at a time.

    Args:
        requests: agreeing in what a batch must agree in.
        stream, decode: those of a `Pipeline`.
        progress: show how far it is on stderr: a bar on a terminal, now and then a line elsewhere.
        callback: called with the `Progress` of every step.
    """
    images: list[Picture] = []
    batches = math.ceil(len(requests) / batch)
    steps = batches * requests[0].steps
    with Shown(steps, unit="step", quiet=not progress) as shown:
        for start in range(0, len(requests), batch):
            part = requests[start : start + batch]
            latents: Tensor | None = None
            for state in stream(part):
                shown.total = batches * state.steps
                latents = state.latents
                shown.update()
                if callback is not None:
                    callback(state)
            assert latents is not None
            images += decode(latents, part)
    return images
