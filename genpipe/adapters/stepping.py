"""A call of a pipeline of diffusers as a generator of its steps.

Pipelines of diffusers keep their loop to themselves. What each of them does once per step, in every stage and at every
version, is to call the `step` of a scheduler; so the call runs in a thread of its own, and is held there until the next
step is asked for.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from genpipe.adapters.instead import instead

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One finished step.

    Attributes:
        done: how many are finished, of all stages.
        latents: what the scheduler made, (B, ...), in the form that the pipeline's network has it.
    """

    done: int
    latents: Tensor


@dataclass(frozen=True)
class Returned(Generic[T]):
    """What the call gave in the end."""

    value: T


class _Stopped(BaseException):
    """Nobody wants the call's result any more; no `except Exception` of a pipeline's stops it."""


def steps_of(call: Callable[[], T], schedulers: Sequence[Any], device: torch.device) -> Iterator[Step | Returned[T]]:
    """Run a call that steps schedulers, and yield each `Step`, and in the end what it `Returned`.

    Closing the generator ends the call at its next step.

    Args:
        call: the call, which runs in another thread, never beside the caller.
        schedulers: those that it may step.
        device: that the call computes on.

    Raises:
        Exception: whatever the call raises.
    """
    # Both are held but for the moment in which one thread hands over to the other; a semaphore would take several locks for that.
    turn, told = threading.Lock(), threading.Lock()
    turn.acquire()
    told.acquire()
    said: list[Step | Returned[T] | BaseException] = []
    stopped = False
    done = 0

    def hold(latents: Tensor) -> None:
        nonlocal done
        done += 1
        said.append(Step(done, latents))
        told.release()
        turn.acquire()
        if stopped:
            raise _Stopped

    def stepped(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)  # pipelines look at its signature
        def run(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            hold(result[0] if isinstance(result, tuple) else result.prev_sample)
            return result

        return run

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def work() -> None:
        try:
            with torch.cuda.stream(stream) if stream is not None else nullcontext(), ExitStack() as hooks:
                for scheduler in schedulers:
                    hooks.enter_context(instead(scheduler, "step", stepped(scheduler.step)))
                said.append(Returned(call()))
        except BaseException as error:  # noqa: BLE001 - it is raised where the steps are asked for
            said.append(error)
        told.release()

    thread = threading.Thread(target=work, name="genpipe-diffusers", daemon=True)
    thread.start()
    try:
        while True:
            told.acquire()
            message = said.pop()
            if isinstance(message, BaseException):
                raise message
            yield message
            if isinstance(message, Returned):
                return
            turn.release()
    finally:
        stopped = True
        if turn.locked():
            turn.release()
        thread.join()
