"""Where a pipeline of diffusers keeps its weights, and in what; and whether there is room for them."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genpipe.adapters.single import SingleFile
from genpipe.adapters.storing import bytes_per_number, check_stored, denoisers_in, store
from genpipe.checkpoints.tensors import open_tensors
from genpipe.hardware import free_memory
from genpipe.messages import listed, one_line
from genpipe.spec import ModelSpec

# Diffusers' own variable: how attention is computed. Torch, which is "native", chooses among its kernels by itself.
ATTENTION, NATIVE = "DIFFUSERS_ATTN_BACKEND", "native"


def check_placing(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError unless a pipeline can be placed as a spec says.

    Args:
        spec: its `offload` and `weights` count.
        device, dtype: that it computes on, and in.
    """
    check_stored(spec, device, dtype)
    if spec.offload in ("model", "sequential") and device.type == "cpu":
        raise ValueError(f"offload {spec.offload!r} keeps weights off a GPU until they run, and the device is a CPU")


def warn_of_memory(
    folder: Path,
    parts: Mapping[str, tuple[str, str]],
    spec: ModelSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    single: SingleFile | None = None,
    beside: Sequence[Path] = (),
    free: int | None = None,
) -> None:
    """Warn, before a pipeline is loaded, where there is less memory than its weights take.

    Args:
        folder: of its files.
        parts: (library, class) of each, by its folder.
        spec: with `offload`, the device holds the largest part alone, and the machine all.
        device, dtype: where and in what it is to run.
        single: a file that further parts are read from.
        beside: folders of networks that stay on the device.
        free: bytes of the device; None looks.
    """
    denoisers, stored = denoisers_in(parts), bytes_per_number(spec, dtype)
    sizes = [
        _numbers_in(folder / part, spec.variant) * (stored if part in denoisers else dtype.itemsize) for part in parts
    ]
    if single is not None:
        sizes += single.memory(dtype.itemsize, stored)
    needed = max(sizes, default=0) if spec.offload else sum(sizes)
    needed += sum(_numbers_in(each, spec.variant) for each in beside) * dtype.itemsize
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
    store(pipe, spec, dtype)
    if spec.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif spec.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif spec.offload == "group":
        whole = [
            name for name, part in pipe.components.items() if not getattr(part, "_supports_group_offloading", True)
        ]
        if whole:
            warnings.warn(
                f"offload 'group' keeps {listed(whole)} on the device: diffusers does not part it", stacklevel=2
            )
        try:
            pipe.enable_group_offload(
                onload_device=device,
                offload_type="leaf_level",
                use_stream=device.type == "cuda",
                exclude_modules=whole,
            )
        except ValueError as error:
            reason = one_line(str(error).partition(".")[0], 120)
            raise ValueError(f"offload 'group' is not for {type(pipe).__name__}: {reason}; use model") from error
    else:
        pipe.to(device)
    if (attention := os.environ.get(ATTENTION, NATIVE).lower()) != NATIVE and not choose_attention(pipe, attention):
        warnings.warn(
            f"{ATTENTION} has no effect on {type(pipe).__name__}, whose attention diffusers does not choose",
            stacklevel=2,
        )
    if spec.compile:
        compile_blocks(pipe)
    return pipe


def choose_attention(pipe: Any, name: str) -> bool:
    """Let the denoisers of a pipeline compute attention by one of diffusers' backends, where they leave the choice to it.

    Args:
        pipe: the pipeline.
        name: of the backend: "native", "flash", "sage", "xformers" or another of diffusers'.

    Returns:
        Whether one of them does.

    Raises:
        ValueError: there is no such backend, or its package is not installed.
    """
    networks = [
        part
        for part in pipe.components.values()
        if hasattr(part, "set_attention_backend")
        and any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in part.modules())
    ]
    for network in networks:
        try:
            network.set_attention_backend(name)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{ATTENTION} {name!r} cannot be used: {one_line(str(error), 300)}") from error
    return bool(networks)


def compile_blocks(pipe: Any, backend: str = "inductor") -> None:
    """Let torch compile the blocks that the denoisers of a pipeline repeat, one compilation for all of a kind.

    Args:
        pipe: the pipeline.
        backend: of `torch.compile`.

    Raises:
        ValueError: diffusers knows of no such blocks in it.
    """
    networks = []
    for part in pipe.components.values():
        kinds = getattr(part, "_repeated_blocks", ())
        if kinds and any(type(module).__name__ in kinds for module in part.modules()):
            networks.append(part)
    if not networks:
        raise ValueError(
            f"compile is not for {type(pipe).__name__}: diffusers names no blocks to compile; leave it out"
        )
    for network in networks:
        network.compile_repeated_blocks(backend=backend)


def _numbers_in(folder: Path, variant: str | None) -> int:
    """How many numbers the weights in a part's folder are."""
    files = list(folder.glob("*.safetensors"))
    own = [file for file in files if f".{variant}" in file.name]  # a part may have none of a variant
    return sum(math.prod(entry.shape) for file in own or files for entry in open_tensors(file).entries.values())
