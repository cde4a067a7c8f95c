"""What `benchmark.py` needs of a GPU alone: its name, how busy it is, and a call captured as a CUDA graph."""

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

SAMPLED = 1.0  # seconds, the longest over which a driver averages how busy its card is


def synchronize(device: str) -> None:
    """Wait for what the device was given to do; a CPU has done it already."""
    if device == "cuda":
        torch.cuda.synchronize()


def graphed(call: Callable[[Tensor], Tensor], given: Tensor) -> Callable[[], Tensor]:
    """`call(given)` as one CUDA graph. Each replay first copies `given` to where the graph reads, as a sampler would."""
    static = given.clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # where the libraries choose their algorithms, which cannot be captured
        for _ in range(3):
            call(static)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(static)

    def replay() -> Tensor:
        static.copy_(given)
        graph.replay()
        return result

    return replay


def busy_percent(run: Callable[[], Any]) -> float | None:
    """Of the time, how much the GPU has something to compute while `run` is repeated; None where nvidia-smi cannot say."""

    def sample() -> str | None:
        time.sleep(SAMPLED)
        return nvidia_smi("utilization.gpu")

    with ThreadPoolExecutor(1) as pool:
        sampled = pool.submit(sample)
        while not sampled.done():
            run()
            torch.cuda.synchronize()
    text = sampled.result()
    return float(text) if text is not None and text.isdecimal() else None


def nvidia_smi(field: str) -> str | None:
    """What nvidia-smi says of this process's GPU; None where it is not installed or does not know."""
    try:
        card = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        command = ["nvidia-smi", f"--id={card}", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def card() -> dict[str, Any]:
    """The GPU, and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "driver": nvidia_smi("driver_version"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
