"""The loop that every training shares: a budget, a learning rate, an average of the weights, checkpoints, resume.

Everything random in a step is drawn from generators seeded by (seed, step), so a run that was killed continues from its
checkpoint on the very numbers that it would have seen.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from genpipe.files import write_safetensors
from genpipe.training.muon import Muon, matrices


@dataclass(frozen=True)
class Budget:
    """How long to train: so many minutes of wall-clock time, or so many steps. Exactly one is given."""

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
        """The share of the budget that is used after `step` steps and `seconds` of training; 1 or more is the end."""
        return step / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1.0))


def learning_rate(fraction: float, peak: float, *, warmup: float = 0.02, flat: float = 0.5) -> float:
    """Warm up over the first 2 % of the budget, stay at the peak until half of it, then fall to zero as a cosine."""
    if fraction < warmup:
        return peak * max(fraction, 0.001) / warmup
    if fraction < flat:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min((fraction - flat) / (1 - flat), 1.0)))


@dataclass
class Draw:
    """The randomness of one training step: a function of the seed and the step alone."""

    scenes: random.Random
    noise: torch.Generator

    @classmethod
    def at(cls, seed: int, step: int) -> "Draw":
        mixed = (seed << 32) + step
        return cls(random.Random(mixed), torch.Generator().manual_seed(mixed))


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, int, Draw], Tensor],
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

    Args:
        model: trained in place, in fp32; the accelerator's autocast lowers the precision of the arithmetic.
        loss: called with (model, step, draw), returns a scalar.
        directory: holds `state.safetensors` (weights, average, optimizers' moments) and `log.jsonl`; a run that finds a
            state there continues from it.
        peak_rate: the highest learning rate, see `learning_rate`.
        muon: whether Muon has the matrices and AdamW the rest, else AdamW has all.
        average: decay of the moving average, reached gradually in the first steps.
        on_checkpoint: called with the average after each checkpoint, to draw samples or to save weights, and at once
            if the budget was used up before: the last run may have been killed between its state and this.

    Raises:
        ValueError: the state in `directory` is that of another network, or damaged.
        FloatingPointError: the loss is not finite; the last checkpoint is intact.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model = model.to(accelerator.device)
    averaged = deepcopy(model).requires_grad_(False).eval()
    optimizers = _optimizers(model, peak_rate, muon)
    step, seconds = _restore(directory / "state.safetensors", model, averaged, optimizers)
    parameters, averages = list(model.parameters()), list(averaged.parameters())
    if step and budget.fraction(step, seconds) >= 1 and on_checkpoint is not None:
        on_checkpoint(averaged)
    buffers, averaged_buffers = list(model.buffers()), list(averaged.buffers())

    started, saved = time.monotonic() - seconds, time.monotonic()
    running: float | None = None
    with tqdm(desc=directory.name, initial=step, unit="step", dynamic_ncols=True) as bar:
        while (fraction := budget.fraction(step, seconds)) < 1:
            rate = learning_rate(fraction, peak_rate)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            with accelerator.autocast():
                value = loss(model, step, Draw.at(seed, step))
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss is {value.item()} at step {step}: lower the learning rate")
            accelerator.backward(value)
            accelerator.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
            follow = 1 - min(average, (1 + step) / (10 + step))
            for mean, parameter in zip(averages, parameters, strict=True):
                mean.lerp_(parameter.detach(), follow)
            # A batch norm's statistics are averages already.
            for mean, buffer in zip(averaged_buffers, buffers, strict=True):
                mean.copy_(buffer)

            step, seconds = step + 1, time.monotonic() - started
            running = value.item() if running is None else 0.98 * running + 0.02 * value.item()
            bar.update()
            bar.set_postfix(loss=f"{running:.4f}", rate=f"{rate:.1e}", used=f"{fraction:.0%}")
            if step % 50 == 0:
                _log(directory / "log.jsonl", step=step, seconds=round(seconds, 1), loss=round(running, 5), rate=rate)
            if time.monotonic() - saved > 60 * checkpoint_minutes or budget.fraction(step, seconds) >= 1:
                _save(directory / "state.safetensors", model, averaged, optimizers, step, seconds)
                if on_checkpoint is not None:
                    on_checkpoint(averaged)
                saved = time.monotonic()
    return averaged


def quick_attention(device: torch.device, tokens: int) -> AbstractContextManager[object]:
    """On a CPU the fused attention's backward pass takes four times as long as plain products where tokens are few."""
    few = device.type == "cpu" and tokens <= 1024
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()


def _optimizers(model: nn.Module, rate: float, muon: bool) -> list[torch.optim.Optimizer]:
    orthogonal = matrices(model) if muon else []
    taken = {id(parameter) for parameter in orthogonal}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in taken]
    adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01) if rest else None
    return [*([Muon(orthogonal, rate)] if orthogonal else []), *([adamw] if adamw else [])]


def _log(path: Path, **values: float) -> None:
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def _save(
    path: Path,
    model: nn.Module,
    averaged: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in averaged.state_dict().items()}
    for name, parameter in model.named_parameters():
        # What is frozen has no moments.
        for optimizer in optimizers:
            for moment in optimizer.state.get(parameter, {}).keys() & {"exp_avg", "exp_avg_sq", "momentum"}:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # A fixed name: a state is large, trainings are killed, and each has its own folder.
    metadata = {"step": str(step), "seconds": str(seconds)}
    write_safetensors(path, contiguous, metadata, part=path.with_suffix(".tmp"))


def _restore(
    path: Path, model: nn.Module, averaged: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Load a state saved by `_save`; returns the step and the seconds it was saved at, 0 and 0.0 without one."""
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata()
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to begin again") from None
    step = int(metadata["step"])

    def part(prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(prefix + ".")}

    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in part("model").items()} != wanted:
        raise ValueError(f"{path} is the state of another network: repeat that run's arguments, or use another folder")
    model.load_state_dict(part("model"))
    averaged.load_state_dict(part("average"))
    for name, parameter in model.named_parameters():
        moments = {moment: tensors.get(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq", "momentum")}
        state: dict[str, Tensor] = {
            m: tensor.to(parameter.device) for m, tensor in moments.items() if tensor is not None
        }
        if "exp_avg" in state:
            state["step"] = torch.tensor(float(step))
        for optimizer in optimizers:
            if state and any(parameter is one for group in optimizer.param_groups for one in group["params"]):
                optimizer.state[parameter] = state
    return step, float(metadata["seconds"])
