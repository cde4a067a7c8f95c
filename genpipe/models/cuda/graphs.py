"""CUDA graphs of a U-Net's evaluations: all kernels of a step are launched at once, by one call."""

import gc
import math
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from genpipe.models.denoiser import Inputs, evaluate
from genpipe.models.unet import UNet

Outputs = tuple[Tensor, Tensor | None]
# Graphs that are kept; each has a shape of its own.
MOST = 16
# The share of the device's memory that must be free before another graph is captured.
SHARE = 0.1
# Evaluations after which a shape is tried again for which there was no memory, which another process may have given back;
# after each failure twice as many.
RETRY = 100


class Capture(Protocol):
    """Records what a function does on the device, to repeat it without running its Python code."""

    def __call__(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Record a function that reads tensors which stay in place; calling the result repeats it.

        The outputs are the same tensors each time, and may be overwritten by another recording's repetition.

        Raises:
            RuntimeError: it cannot be recorded, or memory is too short for it.
        """
        ...

    def wait(self) -> None:
        """Order what the device is given next after the last repetition, whichever stream that ran in."""
        ...

    def free_share(self) -> float:
        """The share of the device's memory that is free, 0 … 1."""
        ...

    def release(self) -> None:
        """Give back the memory of recordings, none of which is in use any more."""
        ...


class CudaCapture:
    """`Capture` by CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._used: torch.cuda.Stream | None = None
        self._pool: Any = None  # its type has no public name

    def __call__(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """As `Capture` says."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # The first run loads kernels and allocates workspaces, which must not happen while recording.
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                function()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile: "thread_local".
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function()
            current.wait_stream(self._stream)

        def repeat() -> Outputs:
            graph.replay()
            self._used = torch.cuda.current_stream(self._device)
            return outputs

        return repeat

    def wait(self) -> None:
        """As `Capture` says."""
        current = torch.cuda.current_stream(self._device)
        if self._used is not None and self._used != current:
            current.wait_stream(self._used)

    def free_share(self) -> float:
        """As `Capture` says; what torch holds and does not use counts as free."""
        free, total = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return (free + unused) / total

    def release(self) -> None:
        """As `Capture` says."""
        self._pool = None
        gc.collect()
        torch.cuda.empty_cache()


class Graphs:
    """`evaluate` of one U-Net by recordings, one per shape of its inputs, which outlive the batch.

    A recording reads tensors of its own: latents, shifts, residuals and maps are copied there at each call, prompts and extra
    channels at the first of a batch. Where none can be made, the network is evaluated plainly, with one warning.

    Args:
        unet: whose weights stay where they are; another network is evaluated plainly.
        device: that it is on.
        capture: makes recordings; None makes CUDA graphs.
        most: recordings that are kept; the one that was used least recently goes first.
        share: of the device's memory that must be free before another is made; else all go first.
        retry: evaluations after which a shape is tried again that memory was too short for.
    """

    def __init__(
        self,
        unet: UNet,
        *,
        device: torch.device,
        capture: Capture | None = None,
        most: int = MOST,
        share: float = SHARE,
        retry: int = RETRY,
    ) -> None:
        self._unet = unet
        self._most, self._share, self._retry = most, share, retry
        self._capture = CudaCapture(device) if capture is None else capture
        self._graphs: dict[Hashable, _Graph] = {}  # in the order of their last use
        # Of shapes that could not be recorded: evaluations until the next attempt, and until the one after that.
        self._refused: dict[Hashable, tuple[float, float]] = {}
        self._lock = Lock()
        _ALIVE.add(self)

    def __len__(self) -> int:
        return len(self._graphs)

    @torch.inference_mode()
    def __call__(self, unet: UNet, inputs: Inputs) -> Outputs:
        """As `genpipe.models.denoiser.evaluate`."""
        if unet is not self._unet:
            return evaluate(unet, inputs)
        with self._lock:
            self._capture.wait()
            key = _shape(inputs)
            graph = self._graphs.pop(key, None)
            if graph is None and not self._waits(key):
                graph = self._captured(key, inputs)
            if graph is None:
                return evaluate(unet, inputs)
            self._graphs[key] = graph
            while len(self._graphs) > self._most:
                del self._graphs[next(iter(self._graphs))]
            return graph(inputs)

    def clear(self) -> None:
        """Let go of all recordings and their memory; they are made again when they are wanted."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._graphs.clear()
        self._capture.release()

    def _captured(self, key: Hashable, inputs: Inputs) -> "_Graph | None":
        if self._graphs and self._capture.free_share() < self._share:
            self._clear()
        try:
            return _Graph(partial(evaluate, self._unet), inputs, self._capture)
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            short = isinstance(error, torch.OutOfMemoryError)
        self._clear()  # after the handler: its traceback holds tensors
        if not self._refused:
            warnings.warn(f"evaluating without CUDA graphs, at some cost of time: {reason}", stacklevel=4)
        wait = self._refused.get(key, (0, self._retry))[1] if short else math.inf
        self._refused[key] = wait, 2 * wait
        return None

    def _waits(self, key: Hashable) -> bool:
        """Whether a shape could not be recorded, and is not to be tried again yet."""
        left, after = self._refused.get(key, (0, self._retry))
        if left:
            self._refused[key] = left - 1, after
        return left > 0


_ALIVE: "weakref.WeakSet[Graphs]" = weakref.WeakSet()


def release_graphs() -> None:
    """Let go of all recordings of this process, as where memory is short; they are made again when they are wanted."""
    for graphs in list(_ALIVE):
        graphs.clear()


class _Graph:
    """The recording of one shape, and the tensors that it reads."""

    def __init__(self, function: Callable[[Inputs], Outputs], inputs: Inputs, capture: Capture) -> None:
        self._own = _copied(inputs)
        self._batch: list[weakref.ref[Tensor]] = []
        self._update(inputs)
        self._repeat = capture(partial(function, self._own))

    def __call__(self, inputs: Inputs) -> Outputs:
        self._update(inputs)
        output, deep = self._repeat()
        # Copies: the next repetition of any recording overwrites what this one gave.
        return output.clone(), None if deep is None else deep.clone()

    def _update(self, inputs: Inputs) -> None:
        own = list(_changing(self._own))
        given = list(_changing(inputs))
        batch = list(_constant(inputs))
        if len(batch) != len(self._batch) or any(
            known() is not one for known, one in zip(self._batch, batch, strict=True)
        ):
            own += _constant(self._own)
            given += batch
            self._batch = [weakref.ref(one) for one in batch]
        for mine, theirs in zip(own, given, strict=True):
            mine.copy_(theirs)


def _changing(inputs: Inputs) -> Iterator[Tensor]:
    """What differs from step to step."""
    yield from (inputs.latents, inputs.shifts)
    if inputs.deep is not None:
        yield inputs.deep
    yield from inputs.residuals or ()
    yield from inputs.maps or ()


def _constant(inputs: Inputs) -> Iterator[Tensor]:
    """What all steps of a batch share."""
    for read in inputs.prompts.values():
        yield from read
    if inputs.extra is not None:
        yield inputs.extra


def _shape(inputs: Inputs) -> Hashable:
    """What inputs must agree in to be read by the same recording."""
    tensors = (
        inputs.latents,
        inputs.shifts,
        inputs.deep,
        inputs.extra,
        *(inputs.residuals or ()),
        None,
        *(inputs.maps or ()),
    )
    # The keys of all attentions have the same rows and tokens.
    read = next(iter(inputs.prompts.values()))
    described = tuple(None if tensor is None else (tuple(tensor.shape), tensor.dtype) for tensor in tensors)
    return described, tuple((each.shape[0], each.shape[2], each.dtype) for each in read), inputs.keeps


def _copied(inputs: Inputs) -> Inputs:
    """Tensors of the same shapes and strides, on the same device."""

    def like(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.empty_like(tensor)

    return replace(
        inputs,
        latents=torch.empty_like(inputs.latents),
        shifts=torch.empty_like(inputs.shifts),
        prompts={reader: tuple(map(torch.empty_like, read)) for reader, read in inputs.prompts.items()},
        extra=like(inputs.extra),
        deep=like(inputs.deep),
        residuals=None if inputs.residuals is None else tuple(map(torch.empty_like, inputs.residuals)),
        maps=None if inputs.maps is None else tuple(map(torch.empty_like, inputs.maps)),
    )
