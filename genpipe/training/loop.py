"""The loop that every training shares: a budget, a learning rate, an average of the weights, checkpoints, resume.

Everything random in a step is drawn from generators seeded by (seed, step), so a run that was killed continues from its
checkpoint on the very numbers that it would have seen.
"""

# torch's foreach operations, which torch's own optimizers are made of, have no public names.
# pyright: reportPrivateImportUsage=false

import json
import math
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genpipe.hardware import choose_device, choose_dtype, training_dtype
from genpipe.messages import quoted
from genpipe.progress import Progress
from genpipe.training.muon import Muon, matrices
from genpipe.training.state import restore, save

LOGGED = 50  # steps between two lines of the log


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes of wall-clock time, or steps. Exactly one of the two is given."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("a training budget is either minutes or steps: give one of the two")
        amount = self.steps if self.minutes is None else self.minutes
        if amount is None or not amount > 0:
            raise ValueError(
                f"a training budget of {amount} is out of range: use more than 0 minutes, or 1 step or more"
            )

    def fraction(self, step: int, seconds: float) -> float:
        """Return the share of the budget that is used after `step` steps and `seconds` of training; 1 or more is the end."""
        return step / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1.0))


def learning_rate(fraction: float, peak: float, *, warmup: float = 0.02, flat: float = 0.5) -> float:
    """Return the learning rate: warm up over the first 2 % of the budget, stay at the peak until half of it, then fall to zero as a cosine."""
    if fraction < warmup:
        return peak * max(fraction, 0.001) / warmup
    if fraction < flat:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min((fraction - flat) / (1 - flat), 1.0)))


@dataclass
class Randomness:
    """All that is random in one training step: a function of the seed and the step alone.

    Attributes:
        choices: of Python, for choosing images and words.
        noise: of torch, on the CPU, for tensors.
    """

    choices: random.Random
    noise: torch.Generator

    @classmethod
    def at(cls, seed: int, step: int) -> "Randomness":
        """Return the randomness of a step."""
        mixed = (seed << 32) + step
        return cls(random.Random(mixed), torch.Generator().manual_seed(mixed))


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, int, Randomness], Tensor],
    *,
    directory: Path,
    budget: Budget,
    peak_rate: float,
    accelerator: Accelerator,
    muon: bool = True,
    average: float = 0.999,
    seed: int = 0,
    checkpoint_minutes: float = 3.0,
    on_checkpoint: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Train `model` until the budget is used, and return the moving average of its weights.

    Within a step nothing waits for the device: the loss is looked at once per second, and before anything is saved.

    Args:
        model: trained in place, in fp32; the accelerator's autocast lowers the precision of the arithmetic.
        loss: called with (model, step, randomness), returns a scalar.
        directory: holds `state.safetensors` (weights, average, optimizers' moments) and `log.jsonl`; a run that finds a
            state there continues from it.
        peak_rate: the highest learning rate, see `learning_rate`.
        muon: whether Muon has the matrices and AdamW the rest, else AdamW has all.
        average: decay of the moving average, reached gradually in the first steps.
        checkpoint_minutes: time between two checkpoints.
        on_checkpoint: called with the average after each checkpoint, to draw samples or to save weights, and at once
            if the budget was used up before: the last run may have been killed between its state and this.

    Raises:
        ValueError: a seed out of range, or the state in `directory` is that of another network, damaged, or none of ours.
        FloatingPointError: the loss is not finite; the last checkpoint is intact.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed {quoted(seed)} is out of range: use 0 to {2**31 - 1}")
    directory.mkdir(parents=True, exist_ok=True)
    model = model.to(accelerator.device)
    averaged = deepcopy(model).requires_grad_(False).eval()
    optimizers = _optimizers(model, peak_rate, muon, accelerator)
    state = directory / "state.safetensors"
    step, seconds = restore(state, model, averaged, optimizers)
    if step and budget.fraction(step, seconds) >= 1 and on_checkpoint is not None:
        on_checkpoint(averaged)
    parameters = list(model.parameters())
    losses = Losses(accelerator.device)
    started, saved = time.monotonic() - seconds, time.monotonic()
    with Progress(budget.steps, initial=step, label=directory.name) as progress:
        while (share := budget.fraction(step, seconds)) < 1:
            rate = learning_rate(share, peak_rate)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            with accelerator.autocast():
                value = loss(model, step, Randomness.at(seed, step))
            losses.add(value, step)
            accelerator.backward(value)
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
            follow(averaged, model, 1 - min(average, (1 + step) / (10 + step)))

            step, seconds = step + 1, time.monotonic() - started
            share = budget.fraction(step, seconds)
            due = share >= 1 or time.monotonic() - saved > 60 * checkpoint_minutes
            if due or step % LOGGED == 0 or losses.old:
                losses.look()
            progress.update(share=share, note=f"loss {losses.running:.4f}")
            if step % LOGGED == 0:
                log = {"step": step, "seconds": round(seconds, 1), "loss": round(losses.running, 5), "rate": rate}
                with (directory / "log.jsonl").open("a") as file:
                    file.write(json.dumps(log) + "\n")
            if due:
                save(state, model, averaged, optimizers, step, seconds)
                if on_checkpoint is not None:
                    on_checkpoint(averaged)
                saved = time.monotonic()
    return averaged


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
        value = value.detach().float()
        self._bad = torch.where((self._bad < 0) & ~value.isfinite(), step, self._bad)
        self._mean = value if self._mean is None else self._mean.lerp(value, 0.02)

    @property
    def old(self) -> bool:
        """Whether the last look was a second ago or more."""
        return time.monotonic() - self._looked >= 1

    def look(self) -> None:
        """Wait for the losses so far.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        if (bad := int(self._bad)) >= 0:
            raise FloatingPointError(f"the loss is not finite at step {bad}: lower the learning rate")
        self.running, self._looked = float(self._mean if self._mean is not None else math.nan), time.monotonic()


@torch.no_grad()
def follow(averaged: nn.Module, model: nn.Module, share: float) -> None:
    """Move the averaged weights by a share of the way to those of the model; buffers, averages themselves, are copied."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), share)
    if buffers := list(averaged.buffers()):
        torch._foreach_copy_(buffers, list(model.buffers()))


def choose_accelerator(device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Accelerator:
    """Return what a training runs on.

    Args:
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
        dtype: of the arithmetic, "fp32" or "bf16"; None takes bf16 where that is native. Weights are in fp32.

    Raises:
        ValueError: the device is not available, or another dtype.
    """
    chosen = choose_device(device)
    multiplied = training_dtype(chosen) if dtype is None else choose_dtype(dtype, chosen)
    if multiplied not in (torch.float32, torch.bfloat16):
        raise ValueError("dtype fp16 is not supported in training, it loses small gradients: use bf16 or fp32")
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    # accelerate has one state per process, and refuses a second training on another device or in another dtype.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="bf16" if multiplied == torch.bfloat16 else "no", cpu=chosen.type == "cpu")


def quick_attention(device: torch.device, tokens: int) -> AbstractContextManager[object]:
    """Choose plain products for attention where they train faster: on a CPU, with few tokens, by a factor of four."""
    few = device.type == "cpu" and tokens <= 1024
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()


def _optimizers(model: nn.Module, rate: float, muon: bool, accelerator: Accelerator) -> list[torch.optim.Optimizer]:
    orthogonal = matrices(model) if muon else []
    taken = {id(parameter) for parameter in orthogonal}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in taken]
    # As the accelerator was told by `genpipe.hardware`: bf16 only where it is native.
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    optimizers: list[torch.optim.Optimizer] = []
    if orthogonal:
        optimizers.append(Muon(orthogonal, rate, dtype=dtype))
    if rest:
        fused = accelerator.device.type in ("cpu", "cuda")
        optimizers.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fused))
    return optimizers
