"""The sections of `scripts.benchmark.gpu`, the most important first, and the process that one of them runs in.

Started as `python -m scripts.benchmark.gpu.sections NAME FILE`: imports what the section needs, waits for its plan, one line
of JSON, and appends every figure to FILE as soon as it is measured, one JSON object per line.
"""

import importlib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Keeps one figure: a name, or "group/item", and a value that JSON has.
Say = Callable[[str, Any], None]


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        module: of `scripts.benchmark.gpu`; its function has the section's name.
        seconds: that it takes on an H100, loading among them; those of sections that have not run there to their end are guessed.
        about: what it measures, for help.
        checkpoint: that it loads.
        beside: whether others may be measured at the same time.
    """

    module: str
    seconds: float
    about: str
    checkpoint: str | None = None
    beside: bool = False


@dataclass(frozen=True)
class Plan:
    """What a section is told.

    Attributes:
        folder: has the checkpoints of random weights, and room for what the section writes.
        toy: measure tiny networks, to show that everything runs.
        ends: when the section is stopped, in seconds since the epoch.
        checkpoints: those that the sections need.
        found: the figures of the sections before it.
    """

    folder: str
    toy: bool
    ends: float
    checkpoints: tuple[str, ...] = ()
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where it measures: tiny networks on the CPU."""
        return "cpu" if self.toy else "cuda"

    @property
    def steps(self) -> int:
        """Solver steps of whole images."""
        return 3 if self.toy else 20

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint."""
        return Path(self.folder, name)


SECTIONS = {
    "card": Section("networks", 24, "the card, its GEMM ceiling; makes the checkpoints of the others"),
    "sd15": Section("networks", 52, "Stable Diffusion 1.5: first image, steps, decode, text, whole images", "sd15"),
    "render": Section("rendering", 40, "genpipe render of 256 prompts, Stable Diffusion 1.5, 20 steps", "sd15"),
    "embedded": Section("rendering", 29, "the embedded model: Pipeline alone, genpipe render of 4,096 prompts"),
    "quality": Section("peers", 45, "PSNR of the default against fp32; the first image with a warm cache", "sd15"),
    "render_sdxl": Section("rendering", 58, "genpipe render of 64 prompts, SDXL, 20 steps", "sdxl"),
    "compiled": Section("networks", 110, "the step with torch.compile", "sd15"),
    "fp8": Section("networks", 25, "the step in fp8, and how far its images are from those of the default", "sd15"),
    "gpu_tests": Section("suite", 90, "the tests that need a GPU"),
    "kernels": Section("networks", 13, "the kernels of a step by their time", "sd15"),
    "sdxl": Section("networks", 41, "SDXL 1024²: steps, decode, whole images", "sdxl"),
    "diffusers": Section("peers", 40, "diffusers in bf16, eager and channels_last", "sd15"),
    "forms": Section("networks", 17, "the step in each form that the denoiser has on a GPU", "sd15"),
    "training": Section("training", 40, "training steps of the embedded model's denoiser"),
    "diffusers_compiled": Section("peers", 75, "diffusers in bf16, channels_last, compiled", "sd15"),
    "parity": Section("peers", 60, "Stable Diffusion 1.5 in fp32 without TF32 against diffusers"),
    "parity_sdxl": Section("peers", 90, "the same of SDXL"),
    "suite": Section("suite", 150, "all other tests, with the names of those that fail", beside=True),
}


def main() -> int:
    """Run one section."""
    name, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    # What takes seconds and leaves the GPU alone is done while the section before is still measured.
    function = getattr(importlib.import_module(f"scripts.benchmark.gpu.{SECTIONS[name].module}"), name)
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.init()
    line = sys.stdin.readline()
    if not line:
        return 0
    with open(path, "a", encoding="utf-8") as file:

        def say(key: str, value: Any) -> None:
            file.write(json.dumps({key: value}) + "\n")
            file.flush()

        function(Plan(**json.loads(line)), say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
