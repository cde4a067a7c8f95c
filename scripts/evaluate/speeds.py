"""What `speed="balanced"` and `speed="draft"` save, and what they cost in quality, against "exact".

    pip install "genpipe[compare]"
    python -m scripts.evaluate.speeds                                   # the embedded model
    python -m scripts.evaluate.speeds --parts cost-sd15 --steps 20      # Stable Diffusion 1.5, random weights
    python -m scripts.evaluate.speeds --parts cost-sd15 --checkpoint FOLDER

Both leave guidance out at the noisiest and at the last steps, and keep the deep features of the denoiser for the next step
(balanced) or three (draft); draft would also decode with a tiny autoencoder, which no checkpoint here has. Parts:

    quality     images of held-out prompts, the same seeds at each speed: how far they are from the exact ones (mean PSNR
                and SSIM), and what the judge sees in them. Random weights say nothing about this
    cost        seconds of a picture of the embedded model: speeds in turn, run after run, in one process
    cost-sd15   the same of Stable Diffusion 1.5 at 512 × 512: --checkpoint, or else one of random weights, made for it

A table each on stdout; the last line is one JSON object.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genpipe.embedded import JUDGES
from genpipe.judge.evaluation import measure, summary
from genpipe.judge.scene_judge import Judge
from genpipe.pipeline import Pipeline
from genpipe.request import MAX_STEPS
from genpipe.sampling.speed import SPEEDS
from genpipe.scenes import caption, names
from genpipe.seeds import seeds_for
from scripts.evaluate.held_out import FIRST_SEED, draw, held_out_scenes
from scripts.make.checkpoint import FAMILIES, make_checkpoint

PARTS = ("quality", "cost", "cost-sd15")
PROMPT = "pirate ship"
WARMING = 4  # steps: enough for guided and unguided evaluations, with deep features made and kept
JUDGED = ("object_top1_error", "setting", "colour", "pair", "count", "satisfied")
Rows = dict[str, dict[str, Any]]  # by speed


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id, of quality and cost (default: the embedded model)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--checkpoint", type=Path, help="folder of a Stable Diffusion 1.5; asks for cost-sd15 too")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts of quality (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="images that are timed at each speed (%(default)s)")
    parser.add_argument("--steps", type=int, help="of cost-sd15 (default: the checkpoint's own)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:2], metavar="PART",
                        help="of quality, cost, cost-sd15 (default: the first two)")  # fmt: skip
    arguments = parser.parse_args(given)
    for name in ("prompts", "runs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)} is too few: use 1 or more")
    if arguments.steps is not None and not 1 <= arguments.steps <= MAX_STEPS:
        parser.error(f"--steps {arguments.steps} is out of range: use 1 to {MAX_STEPS}")
    if arguments.checkpoint is not None and not (arguments.checkpoint / "model_index.json").is_file():
        parser.error(f"--checkpoint {arguments.checkpoint} holds no model_index.json: give the folder of a checkpoint")
    try:
        report = compare(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(json.dumps(report))


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if {"quality", "cost"} & set(arguments.parts):
        pipeline = Pipeline.from_pretrained(arguments.model, device=arguments.device)
        if "quality" in arguments.parts:
            report["quality"] = quality(pipeline, arguments.prompts)
            print(quality_table(report["quality"]), flush=True)
        if "cost" in arguments.parts:
            report["cost"] = cost(pipeline, arguments.runs, pipeline.defaults()["steps"])
            print(cost_table(pipeline.name, report["cost"]), flush=True)
    if "cost-sd15" in arguments.parts or arguments.checkpoint is not None:
        with tempfile.TemporaryDirectory() as folder:
            name = "Stable Diffusion 1.5" if arguments.checkpoint else "Stable Diffusion 1.5, random weights"
            pipeline = Pipeline.from_pretrained(
                arguments.checkpoint or random_sd15(Path(folder)), device=arguments.device
            )
            report["cost-sd15"] = cost(pipeline, arguments.runs, arguments.steps or pipeline.defaults()["steps"])
            print(cost_table(name, report["cost-sd15"]), flush=True)
    return report


def random_sd15(folder: Path) -> Path:
    """Make a Stable Diffusion 1.5 of random weights."""
    make_checkpoint(FAMILIES["sd15"], folder)
    return folder


def quality(pipeline: Pipeline, count: int) -> dict[str, Any]:
    """Compare images of `count` held-out prompts at each speed, the exact ones being the reference.

    `lost` are the images that show all that was asked for when exact, and not at this speed; `gained` the other way.

    Raises:
        ValueError: scikit-image is not installed, or the model's concepts have no held-out combination.
    """
    similarity([Image.new("RGB", (16, 16))], [Image.new("RGB", (16, 16))])  # say what is missing before drawing
    pool = tuple(pipeline.checkpoint.defaults.get("concepts", names()))
    scenes = held_out_scenes(random.Random("held out"), pool, count)
    prompts, seeds = [caption(scene) for scene in scenes], seeds_for(FIRST_SEED, count)
    judge = Judge.load(JUDGES / "model.safetensors", device=pipeline.device)
    images = {speed: draw(pipeline, prompts, seeds, speed, speed=speed) for speed in SPEEDS}
    seen = {speed: measure(judge, drawn, scenes) for speed, drawn in images.items()}
    reference = seen["exact"].satisfied
    rows: Rows = {}
    for speed, measured in seen.items():
        pairs = list(zip(reference, measured.satisfied, strict=True))
        rows[speed] = {**summary(measured), "lost": pairs.count((True, False)), "gained": pairs.count((False, True))}
        if speed != "exact":
            rows[speed] |= similarity(images[speed], images["exact"])
    return {"model": pipeline.name, "prompts": count, "speeds": rows}


def similarity(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> dict[str, float]:
    """Return means over pairs of images of PSNR, in decibels, and of SSIM as in "Image Quality Assessment: From Error Visibility
    to Structural Similarity" (Wang et al., 2004), over the three colours. A pair without any difference counts as one that
    differs by one level in one value, or its PSNR would be infinite.
    """
    try:
        from skimage.metrics import structural_similarity  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError('SSIM needs scikit-image: pip install "genpipe[compare]"') from None
    decibels, ssim = [], []
    for image, reference in zip(images, references, strict=True):
        a, b = np.asarray(image, dtype=np.float64), np.asarray(reference, dtype=np.float64)
        error = max(float(np.square(a - b).mean()), 1 / a.size)
        decibels.append(10 * np.log10(255**2 / error))
        ssim.append(structural_similarity(a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
                                          use_sample_covariance=False))  # fmt: skip
    return {"psnr_db": float(np.mean(decibels)), "ssim": float(np.mean(ssim))}


def cost(
    pipeline: Pipeline, runs: int, steps: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Measure the median seconds of one image at each speed, in turn, after one of few steps each that is not counted."""
    for speed in SPEEDS:
        pipeline(PROMPT, seed=0, steps=min(steps, WARMING), speed=speed, progress=False)
    times: dict[str, list[float]] = {speed: [] for speed in SPEEDS}
    for seed in range(runs):
        for speed, seconds in times.items():
            started = clock()
            pipeline(PROMPT, seed=seed, steps=steps, speed=speed, progress=False)
            seconds.append(clock() - started)
    medians = {speed: statistics.median(seconds) for speed, seconds in times.items()}
    rows: Rows = {
        speed: {"seconds": median, "times_faster": medians["exact"] / median, "all_seconds": times[speed]}
        for speed, median in medians.items()
    }
    size = {side: pipeline.defaults()[side] for side in ("width", "height")}
    where = {"device": str(pipeline.device), "dtype": str(pipeline.dtype).removeprefix("torch.")}
    return {**size, "steps": steps, "sampler": pipeline.sampler().name, "runs": runs, **where, "speeds": rows}


def quality_table(report: dict[str, Any]) -> str:
    lines = [
        f"### {report['model']}, {report['prompts']} held-out prompts, against exact\n",
        f"| | PSNR, dB | SSIM | {' | '.join(JUDGED)} | lost | gained |",
        "|---" * (5 + len(JUDGED)) + "|",
    ]
    for speed, row in report["speeds"].items():
        cells = [f"{row['psnr_db']:.1f}", f"{row['ssim']:.3f}"] if "ssim" in row else ["", ""]
        cells += [f"{row[name]:.1%}" if name in row else "" for name in JUDGED]
        lines.append(f"| {' | '.join([speed, *cells, str(row['lost']), str(row['gained'])])} |")
    return "\n".join(lines) + "\n"


def cost_table(name: str, report: dict[str, Any]) -> str:
    told = f"{report['width']} × {report['height']}, {report['steps']} steps of {report['sampler']}"
    lines = [
        f"### {name}, {told}, {report['dtype']} on {report['device']}\n",
        "| | seconds per image | times faster |",
        "|---|---|---|",
    ]
    for speed, row in report["speeds"].items():
        lines.append(f"| {speed} | {row['seconds']:.3g} | {row['times_faster']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
