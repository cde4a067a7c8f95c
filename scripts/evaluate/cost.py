"""What an image costs: operations, time, and bytes of weights."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genpipe.checkpoints import load_checkpoint
from genpipe.embedded import EMBEDDED, JUDGES
from genpipe.models.prepare import prepare
from genpipe.pipeline import Pipeline
from genpipe.pipeline.own import OwnDrawer


def operations(folder: str | Path) -> float:
    """Return the billions of floating-point operations per image, counted in the plain form of the networks: the counter
    does not see into packed layers and fused attention."""
    checkpoint, device = load_checkpoint(folder), torch.device("cpu")
    for network in checkpoint.networks.values():
        prepare(network, device=device, dtype=torch.float32)
    pipeline = Pipeline(OwnDrawer(checkpoint, device=device, dtype=torch.float32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pipeline("pirate ship", seed=1, progress=False)
    return counter.get_total_flops() / 1e9


def cost(pipeline: Pipeline) -> dict[str, Any]:
    times = []
    for seed in range(5):
        started = time.perf_counter()
        pipeline("pirate ship", seed=seed, progress=False)
        times.append(time.perf_counter() - started)
    folder = EMBEDDED if pipeline.name == "embedded" else Path(pipeline.checkpoint.source)
    return {
        "weights_mb": _megabytes(path for path in folder.rglob("*.safetensors") if path.parent != JUDGES),
        "judges_mb": _megabytes(JUDGES.glob("*.safetensors")),
        "gflop_per_image": operations(folder),
        "seconds_per_image": sorted(times)[len(times) // 2],
        "threads": torch.get_num_threads(),
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "steps": pipeline.defaults()["steps"],
    }


def _megabytes(paths: Iterable[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6
