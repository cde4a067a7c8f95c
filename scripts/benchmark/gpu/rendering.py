"""What `genpipe render` takes on a GPU beside the pipeline alone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from genpipe.pipeline import Pipeline
from scripts.benchmark.gpu.measuring import SAMPLER, draw, synchronize
from scripts.benchmark.gpu.sections import Plan, Say

# The command that is measured, and the seconds that it is left to finish its batches in where its time is up.
COMMAND = [sys.executable, "-m", "genpipe", "render"]
LAST_BATCHES = 8


def render(plan: Plan, say: Say) -> None:
    """Stable Diffusion 1.5, 256 prompts in 20 steps."""
    beside_pipeline(plan, say, "sd15", 6 if plan.toy else 256)


def render_sdxl(plan: Plan, say: Say) -> None:
    """SDXL, 64 prompts in 20 steps."""
    beside_pipeline(plan, say, "sdxl", 3 if plan.toy else 64)


def beside_pipeline(plan: Plan, say: Say, name: str, count: int) -> None:
    """Render so many prompts with a checkpoint; its rate, and the share of what the pipeline gave without files."""
    settings = ["--model", str(plan.checkpoint(name)), "--steps", str(plan.steps), "--sampler", SAMPLER]
    rate = run(plan, say, name, count, settings)
    alone = best_rate(plan.found.get(name, {}))
    if rate is not None and alone is not None:
        say("share_of_pipeline", rate / alone)


def embedded(plan: Plan, say: Say) -> None:
    """The embedded model at its own settings."""
    pipe, rates = Pipeline.from_pretrained(device=plan.device), [0.0]
    for batch in (2,) if plan.toy else (64, 256):
        few = pipe.requests(words(batch), seeds=list(range(batch)))
        draw(pipe, few)
        synchronize(plan.device)
        started = time.perf_counter()
        draw(pipe, few)
        rates.append(batch / (time.perf_counter() - started))
        say(f"images_per_s/{batch}", rates[-1])
    del pipe
    rate = run(plan, say, "embedded", 6 if plan.toy else 4096, [])
    if rate is not None:
        say("share_of_pipeline", rate / max(rates))


def words(count: int) -> list[str]:
    """So many prompts that the embedded model knows."""
    return [f"{('pirate ship', 'ship', 'red car', 'cat')[k % 4]} {k}" for k in range(count)]


def best_rate(found: dict[str, Any]) -> float | None:
    """The best of a section's images per second."""
    rates = [value for key, value in found.items() if key.startswith("images_per_s/") and isinstance(value, float)]
    return max(rates, default=None)


def run(plan: Plan, say: Say, name: str, count: int, settings: list[str]) -> float | None:
    """Render so many prompts with the command, and give its images per second; with what it reports."""
    listed, out = Path(plan.folder, f"{name}.txt"), Path(plan.folder, f"{name}_images")
    listed.write_text("\n".join(words(count)) + "\n", encoding="utf-8")
    started = time.perf_counter()
    process = subprocess.Popen([*COMMAND, str(listed), "--out", str(out), "--devices", plan.device, "--quiet", *settings],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        process.wait(max(5.0, plan.ends - time.time() - LAST_BATCHES - 4))
    except subprocess.TimeoutExpired:
        say("cut_short", True)
        process.send_signal(signal.SIGINT)
        say("images_then", len(list(out.glob("images/**/*.png"))))
        process.wait(LAST_BATCHES)
    say("whole_s", time.perf_counter() - started)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for key, value in report.items():
        if isinstance(value, dict):
            for part, own in value.items():
                say(f"{key}/{part}", own)
        elif key not in ("genpipe", "python"):
            say(key, value)
    seconds = report["seconds"]
    if report["pictures"]:  # a later run of the same shape has nothing to measure
        say("again_per_second", report["pictures"] / (seconds["drawing"] - seconds["measure"]))
    return report["pictures_per_second"] or None
