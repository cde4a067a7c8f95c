"""One change of all weights: gradients, optimizers, average. On a GPU its kernels are recorded once and then repeated."""

# torch's foreach operations, which torch's own optimizers are made of, have no public names.
# pyright: reportPrivateImportUsage=false

import math
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from genpipe.messages import one_line
from genpipe.models.cuda.graphs import Capture, CudaCapture
from genpipe.training.muon import Muon, matrices


class Update:
    """Changes the weights of a model by the gradient of a loss, and their average.

    On a GPU the thousands of kernels of an update take longer to start than to run. So the first update whose inputs are
    given is recorded as a CUDA graph, and those with inputs of the same shapes repeat it. Where that fails, one warning
    says why, and updates run as on a CPU.

    Args:
        model: trained in place, on the accelerator's device.
        muon: whether Muon has the matrices and AdamW the rest, else AdamW has all.
        capture: makes the recording; None makes CUDA graphs on a GPU, and none elsewhere.

    Attributes:
        averaged: a copy of the model that follows it.
        optimizers: of its weights.
    """

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, *, muon: bool = True, capture: Capture | None = None
    ) -> None:
        self._model, self._accelerator = model, accelerator
        self.averaged = deepcopy(model).requires_grad_(False).eval()
        self.optimizers = _optimizers(model, muon, accelerator)
        self._parameters = list(model.parameters())
        device = accelerator.device
        self._capture = CudaCapture(device) if capture is None and device.type == "cuda" else capture
        self._share: float | Tensor = 0.0
        if self._capture is not None:  # a recording reads what changes from step to step from the device
            self._share = torch.zeros((), device=device)
            rate = torch.zeros((), device=device)
            for group in self._groups():
                group["lr"] = rate
        self._inputs: tuple[Tensor, ...] = ()
        self._value = torch.zeros((), device=device)
        self._repeat: Callable[[], object] | None = None

    def __call__(
        self, loss: Callable[..., Tensor], inputs: tuple[Tensor, ...] = (), *, rate: float, share: float
    ) -> Tensor:
        """Return the loss, detached; a later call may overwrite it.

        Args:
            loss: called with the model and the inputs; a function that is given inputs has to be the same each time.
            rate: the learning rate.
            share: of the way to the weights that the average moves.
        """
        self._set(rate, share)
        if self._capture is None or not inputs:
            return self._change(loss, inputs)
        if self._repeat is None:
            return self._record(self._capture, loss, inputs)
        if [each.shape for each in inputs] != [each.shape for each in self._inputs]:
            return self._change(loss, inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        with record_function("training/recorded"):
            self._repeat()
        return self._value

    def _set(self, rate: float, share: float) -> None:
        if isinstance(self._share, Tensor):
            self._share.fill_(share)
            self._groups()[0]["lr"].fill_(rate)
        else:
            self._share = share
            for group in self._groups():
                group["lr"] = rate

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _change(self, loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        with record_function("training/forward"), self._accelerator.autocast():
            value = loss(self._model, *inputs)
        with record_function("training/backward"):
            self._accelerator.backward(value)
        with record_function("training/optimizer"):
            nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
            for optimizer in self.optimizers:
                optimizer.step()
            self._model.zero_grad(set_to_none=True)
        with record_function("training/average"):
            follow(self.averaged, self._model, self._share)
        return value.detach()

    def _record(self, capture: Capture, loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """This update, and a recording of it."""
        self._inputs = tuple(each.clone() for each in inputs)
        values: list[Tensor] = []  # the recording begins by running what it records: that is this update

        def change() -> tuple[Tensor, None]:
            values.append(self._change(loss, self._inputs))
            self._value.copy_(values[-1])
            return self._value, None

        try:
            self._repeat = capture(change)
        except RuntimeError as error:
            if not values or self._repeat is not None:
                raise
            reason = one_line(str(error), 160)
            warnings.warn(f"training without CUDA graphs, at some cost of time: {reason}", stacklevel=3)
            self._capture = None
            self._model.zero_grad(set_to_none=True)
        return values[0]


class Losses:
    """The running mean of the losses of the steps, kept on the device, and whether all were finite.

    Attributes:
        running: the mean at the last look; NaN before the first.
    """

    def __init__(self, device: torch.device) -> None:
        self.running = math.nan
        self._mean: Tensor | None = None
        self._bad = torch.tensor(-1, device=device)  # the first step whose loss was not finite
        self._looked = -math.inf

    def add(self, value: Tensor, step: int) -> None:
        """Take up the loss of a step, without waiting for it."""
        value = value.float()
        self._bad = torch.where((self._bad < 0) & ~value.isfinite(), step, self._bad)
        self._mean = value.clone() if self._mean is None else self._mean.lerp(value, 0.02)

    @property
    def old(self) -> bool:
        """Whether the last look was a second ago or more."""
        return time.monotonic() - self._looked >= 1

    def look(self) -> None:
        """Wait for the losses so far.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        with record_function("training/device"):
            bad = int(self._bad)
        if bad >= 0:
            raise FloatingPointError(f"the loss is not finite at step {bad}: lower the learning rate")
        self.running, self._looked = float(self._mean if self._mean is not None else math.nan), time.monotonic()


@torch.no_grad()
def follow(averaged: nn.Module, model: nn.Module, share: float | Tensor) -> None:
    """Move the averaged weights by a share of the way to those of the model; buffers, averages themselves, are copied."""
    averages, weights = list[Tensor](averaged.parameters()), list[Tensor](model.parameters())
    if isinstance(share, Tensor):  # which lerp takes for one tensor at a time
        ahead = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(ahead, share)
        torch._foreach_add_(averages, ahead)
    else:
        torch._foreach_lerp_(averages, weights, share)
    if buffers := list(averaged.buffers()):
        torch._foreach_copy_(buffers, list(model.buffers()))


def _optimizers(model: nn.Module, muon: bool, accelerator: Accelerator) -> list[torch.optim.Optimizer]:
    orthogonal = matrices(model) if muon else []
    taken = {id(parameter) for parameter in orthogonal}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in taken]
    # As the accelerator was told by `genpipe.hardware`: bf16 only where it is native.
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    optimizers: list[torch.optim.Optimizer] = []
    if orthogonal:
        optimizers.append(Muon(orthogonal, dtype=dtype))
    if rest:
        device = accelerator.device.type
        optimizers.append(torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.01, fused=device in ("cpu", "cuda"),
                                            capturable=device == "cuda"))  # fmt: skip
    return optimizers
