"""The loop that every training shares: a budget, a learning rate, an average of the weights, checkpoints, resume.

Everything random in a step is drawn from generators seeded by (seed, step), so a run that was killed continues from its
checkpoint on the very numbers that it would have seen.
"""

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import record_function

from genpipe.hardware import choose_device, choose_dtype, keep_freed_memory, training_dtype, use_huge_pages
from genpipe.messages import quoted
from genpipe.progress import Progress
from genpipe.training.ahead import ahead, sent, workers_beside
from genpipe.training.state import restore, save
from genpipe.training.update import Losses, Update

T = TypeVar("T")

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


# Called with (model, step, randomness), returns a scalar.
Loss = Callable[[nn.Module, int, Randomness], Tensor]


@dataclass(frozen=True)
class StagedLoss(Generic[T]):
    """A loss in three parts: what a step needs is made ahead of it, and the arithmetic is the same at each.

    Attributes:
        prepare: draws and words the images of a step, on the CPU and perhaps in another process. Of its randomness it uses
            the choices.
        admit: called with that, the step and its randomness, of which it uses the noise; returns tensors, which are then
            moved to the device that trains.
        value: called with the model and these tensors; returns a scalar, and does nothing that depends on their values.
    """

    prepare: Callable[[int, Randomness], T]
    admit: Callable[[T, int, Randomness], tuple[Tensor, ...]]
    value: Callable[..., Tensor]

    def __call__(self, model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        """Return the loss of a step, without anything made ahead."""
        return self.value(model, *self.admit(self.prepare(step, randomness), step, randomness))


def fit(
    model: nn.Module,
    loss: Loss,
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
    workers: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train `model` until the budget is used, and return the moving average of its weights.

    Within a step nothing waits for the device: the loss is looked at once per second, and before anything is saved.

    Args:
        model: trained in place, in fp32; the accelerator's autocast lowers the precision of the arithmetic.
        loss: a `StagedLoss` is prepared ahead, and on a GPU recorded.
        directory: holds `state.safetensors` (weights, average, optimizers' moments) and `log.jsonl`; a run that finds a
            state there continues from it.
        peak_rate: the highest learning rate, see `learning_rate`.
        muon: whether Muon has the matrices and AdamW the rest, else AdamW has all.
        average: decay of the moving average, reached gradually in the first steps.
        checkpoint_minutes: time between two checkpoints.
        on_checkpoint: called with the average after each checkpoint, to draw samples or to save weights, and at once
            if the budget was used up before: the last run may have been killed between its state and this.
        workers: processes that prepare a `StagedLoss`; None takes as many as suit the device, see
            `genpipe.training.ahead`.
        stop: asked after each step whether to end early, as after a last checkpoint.

    Raises:
        ValueError: a seed out of range, or the state in `directory` is that of another network, damaged, or none of ours.
        FloatingPointError: the loss is not finite; the last checkpoint is intact.
        Stopped: `stop` said so.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed {quoted(seed)} is out of range: use 0 to {2**31 - 1}")
    directory.mkdir(parents=True, exist_ok=True)
    model = model.to(accelerator.device)
    update = Update(model, accelerator, muon=muon)
    averaged, optimizers = update.averaged, update.optimizers
    state = directory / "state.safetensors"
    step, seconds = restore(state, model, averaged, optimizers)
    if step and budget.fraction(step, seconds) >= 1 and on_checkpoint is not None:
        on_checkpoint(averaged)
    losses = Losses(accelerator.device)
    workers = workers_beside(accelerator.device) if workers is None else workers
    prepared = _prepared(loss, seed, step, workers) if isinstance(loss, StagedLoss) else None
    started, saved = time.monotonic() - seconds, time.monotonic()
    with Progress(budget.steps, initial=step, label=directory.name) as progress:
        while (share := budget.fraction(step, seconds)) < 1:
            rate, follow = learning_rate(share, peak_rate), 1 - min(average, (1 + step) / (10 + step))
            randomness = Randomness.at(seed, step)
            if prepared is not None and isinstance(loss, StagedLoss):
                with record_function("training/prepared"):
                    made = next(prepared)
                with record_function("training/admit"), torch.no_grad(), accelerator.autocast():
                    given = loss.admit(made, step, randomness)
                    inputs = tuple(sent(each, accelerator.device) for each in given)
                value = update(loss.value, inputs, rate=rate, share=follow)
            else:
                value = update(_at(loss, step, randomness), rate=rate, share=follow)
            losses.add(value, step)

            step, seconds = step + 1, time.monotonic() - started
            share = budget.fraction(step, seconds)
            stopped = stop is not None and stop()
            due = share >= 1 or stopped or time.monotonic() - saved > 60 * checkpoint_minutes
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
                if stopped and share < 1:
                    raise Stopped(f"{directory.name} stopped at step {step}: the same command continues it")
                saved = time.monotonic()
    return averaged


class Stopped(RuntimeError):
    """A training that was asked to end early, and has saved its state."""


def _prepared(loss: StagedLoss[T], seed: int, first: int, workers: int) -> Iterator[T]:
    """What the steps from `first` on need, made ahead of them once the first is asked for."""

    def prepare(step: int) -> T:
        return loss.prepare(step, Randomness.at(seed, step))

    yield from ahead(prepare, itertools.count(first), workers=workers)


def _at(loss: Loss, step: int, randomness: Randomness) -> Callable[[nn.Module], Tensor]:
    return lambda model: loss(model, step, randomness)


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
    if chosen.type == "cpu":  # else a tenth of a step's time goes into new pages for what the last one freed
        use_huge_pages()
        keep_freed_memory(large=multiplied != torch.float32)
    # accelerate has one state per process, and refuses a second training on another device or in another dtype.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="bf16" if multiplied == torch.bfloat16 else "no", cpu=chosen.type == "cpu")


def quick_attention(device: torch.device, tokens: int) -> AbstractContextManager[object]:
    """Choose plain products for attention where they train faster: on a CPU, with few tokens, by a factor of four."""
    few = device.type == "cpu" and tokens <= 1024
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()
