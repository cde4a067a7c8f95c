"""A batch whose images are guided in different forms, drawn as several that go step by step together."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from genpipe.images import Picture
from genpipe.pipeline.progress import Progress
from genpipe.request import Request


def side_by_side(
    groups: Sequence[Sequence[int]],
    requests: Sequence[Request],
    stream: Callable[[Sequence[Request]], Iterator[Progress]],
    preview: Callable[[Tensor], list[Picture]],
) -> Iterator[Progress]:
    """Give the steps of a whole batch from those of its groups.

    Args:
        groups: which of the batch's requests are in each.
        requests: the batch.
        stream: gives the steps of one group; of one that takes fewer (none is begun again) the last is kept.
        preview: makes rough images of latents.
    """
    order = sorted(range(len(requests)), key=[index for group in groups for index in group].__getitem__)
    latest: list[Progress | None] = [None] * len(groups)
    for states in zip_longest(*(stream([requests[index] for index in group]) for group in groups)):
        latest = [old if new is None else new for old, new in zip(latest, states, strict=True)]
        latents = torch.cat([state.latents for state in latest if state is not None])[order]
        longest = next(state for state in states if state is not None)
        yield Progress(longest.step, longest.steps, latents, lambda latents=latents: preview(latents))
