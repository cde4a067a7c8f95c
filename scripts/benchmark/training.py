"""Measure where the time of a training step of the embedded model's denoiser goes, and from how many images per second it learns.

    python -m scripts.benchmark.training
    python -m scripts.benchmark.training --device cuda --batch 256 --steps 200

It trains as `scripts.train.embedded --init` does, from the shipped weights on scenes that it draws in their size: first steps that are only
timed, then steps under torch's profiler. Filling the pool of latents comes before both and is not counted. Where an update
is recorded as a CUDA graph, its forward pass, backward pass, optimizer and average are one row, the time that starting it
takes; what the GPU then works is in "wait for the device", which is looked at once per second. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from genpipe.embedded import EMBEDDED
from genpipe.hardware import choose_device, device_name
from genpipe.scenes.concepts import names
from genpipe.training.loop import Budget, choose_accelerator
from genpipe.training.text_to_image import BATCH, train, trained_model
from scripts.train.scenes import GPU_BATCH, Scenes

WARM = 5  # steps before the clock starts: caches fill, on a GPU the update is recorded
# What a mark of the training loop is called for people. Those that hold others are counted without them.
PARTS = {
    "draw": "drawing scenes",
    "captions": "captions and tokens",
    "encode": "encoding latents",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "clipping, optimizer",
    "average": "average",
    "recorded": "starting the recorded update",
    "device": "wait for the device",
    "prepared": "wait for what is prepared",
    "admit": "noise, copies to the device",
}
HOLDS = {"prepared": ("draw", "captions"), "admit": ("encode",)}


@dataclass(frozen=True)
class Figures:
    """What a training does in a second, and in a step.

    Attributes:
        milliseconds: per step, by part; measured under the profiler, which takes some time itself.
    """

    device: str
    batch: int
    steps_per_s: float
    images_per_s: float
    milliseconds: dict[str, float]


class Watched(Budget):
    """A budget of steps that notes when each ends and the next begins; in between it calls what is to be called there."""

    def __init__(self, steps: int, calls: Mapping[int, Callable[[], object]]) -> None:
        super().__init__(steps=steps)
        self.__dict__ |= {"ended": {}, "began": {}, "_calls": calls}  # the class is frozen

    ended: dict[int, float]
    began: dict[int, float]
    _calls: Mapping[int, Callable[[], object]]

    def fraction(self, step: int, seconds: float) -> float:
        """As `Budget` says."""
        if step not in self.ended:
            self.ended[step] = time.perf_counter()
            if step in self._calls:
                self._calls[step]()
            self.began[step] = time.perf_counter()
        return super().fraction(step, seconds)


def measure(
    device: str | None, batch: int, steps: int, *, init: str | Path = EMBEDDED, period: int | None = None
) -> Figures:
    """Train for a while.

    Args:
        init: the checkpoint whose denoiser is trained.
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
        batch: images per step.
        steps: that are timed, and then as many, at most 20, that are profiled.
        period: of so many scenes only; None for as many as in earnest.
    """
    accelerator = choose_accelerator(device)
    watching = profile(activities=[ProfilerActivity.CPU])
    first, last = WARM + steps, WARM + steps + min(steps, 20)
    budget = Watched(last, {first: watching.start, last: watching.stop})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        model = trained_model(out, init)
        scenes = Scenes(model.defaults["height"], concepts=names(), seed=0)
        scenes.period = period
        train(model, scenes, out=out, accelerator=accelerator, denoiser=budget, batch=batch, freeze_text=True,
              prompts=["pirate ship"])  # fmt: skip
    rate = steps / (budget.ended[first] - budget.began[WARM])
    taken = {name: 0.0 for name in PARTS}
    for event in watching.key_averages():
        if (name := event.key.removeprefix("training/")) in PARTS:
            taken[name] += event.cpu_time_total / 1e3 / (last - first)
    for name, parts in HOLDS.items():
        taken[name] = max(0.0, taken[name] - sum(taken[part] for part in parts))
    whole = 1e3 * (budget.ended[last] - budget.began[first]) / (last - first)
    named = {title: taken[name] for name, title in PARTS.items() if taken[name] >= 0.005}
    named["all else"] = max(0.0, whole - sum(named.values()))
    return Figures(device_name(accelerator.device), batch, rate, rate * batch, named)


def table(figures: Figures) -> str:
    """Figures as Markdown."""
    whole = sum(figures.milliseconds.values())
    speed = f"{figures.steps_per_s:.3g} steps/s, {figures.images_per_s:,.0f} images/s"
    lines = [
        f"{figures.device}, batch {figures.batch}: {speed}",
        "",
        "| part of a step | ms | share |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {ms:.1f} | {ms / whole:.1%} |" for name, ms in figures.milliseconds.items()]
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Print the table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--batch", type=int, help=f"images per step (default: {BATCH}; on a GPU {GPU_BATCH})")
    parser.add_argument("--steps", type=int, help="that are timed (default: 20; on a GPU 200)")
    parser.add_argument(
        "--init", metavar="CHECKPOINT", default=EMBEDDED, help="start from it (default: the embedded model)"
    )
    arguments = parser.parse_args(given)
    for name in ("batch", "steps"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} {value} is too few: use 1 or more")
    try:
        gpu = choose_device(arguments.device).type == "cuda"
    except ValueError as error:
        parser.error(str(error))
    batch, steps = arguments.batch or (GPU_BATCH if gpu else BATCH), arguments.steps or (200 if gpu else 20)
    try:
        figures = measure(arguments.device, batch, steps, init=arguments.init)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(table(figures))
    print(json.dumps(asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
