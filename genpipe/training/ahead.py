"""What a training needs, made ahead of its use by processes beside the one that trains."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genpipe.processors import processors

T = TypeVar("T")
KEPT_FREE = 2  # processors, for the process that trains and for its GPU's driver
AHEAD = 4  # things that each process makes ahead


def workers_beside(device: torch.device, allowed: int | None = None) -> int:
    """Return how many processes are to draw images for a training: none on a CPU, which has no processor to spare.

    Args:
        device: what trains.
        allowed: processors that this process may use; by default as many as the container allows.
    """
    # A forked process shares the sprites with its parent; where processes cannot be forked, images are drawn in this one.
    if device.type != "cuda" or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    return max(0, (processors() if allowed is None else allowed) - KEPT_FREE)


def ahead(make: Callable[[int], T], numbers: Iterable[int], *, workers: int) -> Iterator[T]:
    """Yield `make` of each number, in order; made ahead by so many processes, or with 0 in this one, when it is asked for.

    Args:
        make: must not use a GPU. What it returns is pickled, where there are processes: arrays rather than tensors, for which
            containers have too little shared memory.
    """
    if not workers:
        return map(make, numbers)
    loader = DataLoader(
        _Made(make),
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        multiprocessing_context="fork",
        pin_memory=torch.cuda.is_available(),  # arrays stay as they are, but a thread of their own receives them
    )
    return iter(loader)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device, without waiting for what that has still to do: a GPU fetches it from pinned memory."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class _Made(Dataset[T]):
    """The function in the shape that torch's loader wants."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> T:
        return self._make(index)


def _as_it_is(made: T) -> T:
    return made
