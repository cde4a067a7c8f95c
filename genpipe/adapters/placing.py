"""Where a pipeline of diffusers keeps its weights, and in what; and whether there is room for them."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from genpipe.adapters.sizes import decoder_of
from genpipe.checkpoints.tensors import open_tensors
from genpipe.hardware import free_memory
from genpipe.messages import one_line
from genpipe.spec import WEIGHTS, ModelSpec

# What weights can be kept in, to be widened layer by layer as they run.
_STORED = ("fp8", "bf16")


def check_placing(spec: ModelSpec, device: torch.device) -> None:
    """Raise ValueError unless a pipeline can be placed as a spec says.

    Args:
        spec: its `offload` and `weights` count.
        device: that it computes on.
    """
    if spec.offload in ("model", "sequential") and device.type == "cpu":
        raise ValueError(f"offload {spec.offload!r} keeps weights off a GPU until they run, and the device is a CPU")
    if spec.weights is not None and spec.weights not in _STORED:
        raise ValueError(
            f"weights {spec.weights!r} are not for models that diffusers draws: use {' or '.join(_STORED)}"
        )


def warn_of_memory(
    folder: Path,
    parts: Iterable[str],
    spec: ModelSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    free: int | None = None,
) -> None:
    """Warn, before a pipeline is loaded, where there is less memory than its weights take.

    Args:
        folder: of its files.
        parts: their folders.
        spec: with `offload`, the device holds the largest part alone, and the machine all.
        device, dtype: where and in what it is to run.
        free: bytes of the device; None looks.
    """
    sizes = [_bytes_of(folder / part, spec, dtype) for part in parts]
    needed = max(sizes, default=0) if spec.offload else sum(sizes)
    free = free_memory(device) if free is None else free
    if free is not None and needed > free:
        fixes = [
            fix for fix, given in (("--offload model", spec.offload), ("--weights fp8", spec.weights)) if not given
        ]
        warnings.warn(
            f"the weights take about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}"
            + (f": try {' or '.join(fixes)}" if fixes else ""),
            stacklevel=2,
        )


def place(pipe: Any, spec: ModelSpec, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Bring a loaded pipeline into the place and the form in which it runs."""
    if spec.weights is not None:
        stored: torch.dtype = getattr(torch, WEIGHTS[spec.weights])
        for part in _denoisers(pipe):
            part.enable_layerwise_casting(storage_dtype=stored, compute_dtype=dtype)
    if spec.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif spec.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif spec.offload == "group":
        try:
            pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda")
        except ValueError as error:
            reason = one_line(str(error).partition(".")[0], 120)
            raise ValueError(f"offload 'group' is not for {type(pipe).__name__}: {reason}; use model") from error
    else:
        pipe.to(device)
    return pipe


def _denoisers(pipe: Any) -> list[Any]:
    """The networks of diffusers' own, without the one that makes pixels of latents."""
    parts = {id(part): part for part in pipe.components.values() if hasattr(part, "enable_layerwise_casting")}
    parts.pop(id(decoder_of(pipe)), None)
    return list(parts.values())


def _bytes_of(folder: Path, spec: ModelSpec, dtype: torch.dtype) -> int:
    """What the weights in a part's folder take in memory."""
    total = 0
    files = list(folder.glob("*.safetensors"))
    own = [file for file in files if f".{spec.variant}" in file.name]  # a part may have none of a variant
    files = own or files
    for file in files:
        for entry in open_tensors(file).entries.values():
            count = 1
            for side in entry.shape:
                count *= side
            total += count
    denoises = not folder.name.startswith("text_encoder")
    itemsize = getattr(torch, WEIGHTS[spec.weights]).itemsize if spec.weights and denoises else dtype.itemsize
    return total * itemsize
