"""Runs over many items, some at a time: fewer where memory runs out, one by one where one of them cannot be drawn."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from genpipe.models.cuda.graphs import release_graphs
from genpipe.models.finite import NonFiniteError

T = TypeVar("T")
R = TypeVar("R")


# How errors that have no type of their own say that memory ran out: CUDA's, cuBLAS's, torch's on a CPU.
_SHORT = ("out of memory", "alloc_failed", "can't allocate memory")


class Failure(str):
    """Why there is no image."""


def in_chunks(
    run: Callable[[list[T]], list[R]],
    items: list[T],
    size: int,
    fits: Callable[[int], None] = lambda size: None,
) -> list[R | Failure]:
    """Give the results of `run` for all items, and the reasons for those that have none.

    Args:
        run: gives a result for each of the items in a chunk.
        size: how many items a chunk has at most.
        fits: called with the smaller size where that was too many for the memory.

    Raises:
        OSError: as `run` raises it.
        RuntimeError: the device has failed, for good: this process has to end.
    """
    results: list[R | Failure] = []
    retried = False
    while len(results) < len(items):
        chunk = items[len(results) : len(results) + size]
        try:
            results += run(chunk)
            retried = False
            continue
        except OSError:
            raise
        except Exception as error:
            if is_lost(error):
                raise
            reason, short = reason_of(error), is_out_of_memory(error)
        # Out here the failed attempt's tensors are gone.
        if short and not (retried and len(chunk) == 1):
            free_unused()
            if len(chunk) > 1:
                size = len(chunk) // 2
                fits(size)
            retried = len(chunk) == 1  # others may have had the memory for a moment
        elif len(chunk) == 1:
            results.append(Failure(reason))
            retried = False
        else:
            for item in chunk:
                results += in_chunks(run, [item], 1)
    return results


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, the device's or the machine's."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and (any(words in text for words in _SHORT))
    )


def is_lost(error: BaseException) -> bool:
    """Tell whether an error says that this process can use its GPU no more, whatever it tries."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and "CUDA error" in str(error)


def free_unused() -> None:
    """Give back what nothing refers to any more, and what can be made again."""
    release_graphs()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason_of(error: Exception) -> str:
    """Say in one line why an image was not drawn."""
    if is_out_of_memory(error):
        return "out of memory, with one image at a time too: make it smaller"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | NonFiniteError) else f"{type(error).__name__}: {text}"
