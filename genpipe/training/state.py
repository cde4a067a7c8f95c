"""The state of a training on disk: weights, their average, the optimizers' moments, and how far it has come."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from genpipe.files import write_safetensors
from genpipe.messages import one_line
from genpipe.training.muon import Muon

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")  # of AdamW and of Muon


def save(
    path: Path,
    model: nn.Module,
    averaged: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> None:
    """Write a state, wholly or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in averaged.state_dict().items()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:  # what is frozen has no moments
            moments = optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS if moment in moments}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # A fixed name: a state is large, trainings are killed, and each has its own folder.
    metadata = {"step": str(step), "seconds": str(seconds)}
    write_safetensors(path, contiguous, metadata, part=path.with_suffix(".tmp"))


def restore(
    path: Path, model: nn.Module, averaged: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Load a state that `save` wrote, if there is one.

    Returns:
        The step and the seconds that it was saved at, 0 and 0.0 without one.

    Raises:
        ValueError: the file is damaged, of another network, or not the state of a training.
        OSError: it cannot be read.
    """
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged headers raise errors of several types
        raise ValueError(f"{path} is damaged ({one_line(str(error), 120)}): delete it to begin again") from error
    step, seconds = _progress(path, metadata)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights, average = (_part(tensors, prefix) for prefix in ("model", "average"))
    if any({name: tensor.shape for name, tensor in part.items()} != wanted for part in (weights, average)):
        raise ValueError(f"{path} is the state of another network: repeat that run's arguments, or use another folder")
    model.load_state_dict(weights)
    averaged.load_state_dict(average)
    for optimizer in optimizers:
        wanted_moments = ("momentum",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in model.named_parameters():
            if id(parameter) not in owned:
                continue
            moments = {moment: tensors[key] for moment in MOMENTS if (key := f"{moment}.{name}") in tensors}
            if not moments:  # it never had a gradient
                continue
            if tuple(moments) != wanted_moments or any(each.shape != parameter.shape for each in moments.values()):
                raise ValueError(f"{path} is the state of another optimizer: use another folder, or delete it")
            state = {moment: tensor.to(parameter.device) for moment, tensor in moments.items()}
            if not isinstance(optimizer, Muon):
                state["step"] = torch.tensor(float(step), device=parameter.device)
            optimizer.state[parameter] = state
    return step, seconds


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(prefix + ".")}


def _progress(path: Path, metadata: Mapping[str, str]) -> tuple[int, float]:
    try:
        step, seconds = int(metadata["step"]), float(metadata["seconds"])
    except (KeyError, ValueError):
        step, seconds = -1, 0.0
    if not 0 <= step < 2**53 or not 0 <= seconds < float("inf"):
        raise ValueError(f"{path} is not the state of a training: use another folder, or delete it")
    return step, seconds
