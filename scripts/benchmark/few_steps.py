"""Time an image of few steps, and what of it is not the denoiser: text, schedule, decoding, PNG.

    python -m scripts.benchmark.few_steps                       # SD-Turbo's shape, 512 × 512, one step, TAESD
    python -m scripts.benchmark.few_steps --steps 4 --runs 3

The weights are random, the path from the prompt to the PNG is the usual one. The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genpipe.checkpoints.layout import tiny_vae
from genpipe.hardware import device_name
from genpipe.images import save_image
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.pipeline import Pipeline
from scripts.make.checkpoint import FAMILIES, PROMPT, make_checkpoint


def make_tiny_vae(folder: Path) -> None:
    """Save a TAESD of random weights, as diffusers saves it."""
    torch.manual_seed(0)
    names = tiny_vae(folder.name)
    folder.mkdir()
    state = {names.theirs(key): tensor for key, tensor in TinyVAE(TinyVAEConfig()).state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))


class Spent:
    """The seconds that calls of some functions take, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function that does the same, and counts its seconds."""

        def counting(*given: Any, **named: Any) -> Any:
            with self.counted(name):
                return call(*given, **named)

        return counting

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def draw(pipe: Pipeline, steps: int, seed: int, folder: Path) -> dict[str, float]:
    """Draw one image into a file, as the command does; seconds of the whole and of its parts. Each prompt is another: none
    is remembered."""
    spent, networks, tiny = Spent(), pipe.networks, pipe.own.tiny_vae
    assert tiny is not None
    evaluate, decode, encode = networks.evaluate, tiny.decode, pipe.text_encoders[0].forward
    networks.evaluate = spent.timed("denoiser", evaluate)
    tiny.decode = spent.timed("decoding", decode)
    pipe.text_encoders[0].forward = spent.timed("text", encode)
    try:
        with spent.counted("whole"):
            image: Any = pipe(
                f"{PROMPT} {seed}", seed=seed, steps=steps, guidance_scale=0.0, speed="draft", progress=False
            )
            with spent.counted("PNG"):
                save_image(image, folder / f"{seed}.png")
    finally:
        networks.evaluate, tiny.decode, pipe.text_encoders[0].forward = evaluate, decode, encode
    named = ("denoiser", "text", "decoding", "PNG")
    return {**spent.seconds, "the rest": spent.seconds["whole"] - sum(spent.seconds[name] for name in named)}


def main(given: list[str] | None = None) -> None:
    """Make the checkpoint, draw, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="counted; one before them is not (%(default)s)")
    parser.add_argument(
        "--checkpoint", type=Path, help="of SD-Turbo's shape, beside a folder taesd; made if it is missing"
    )
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or Path(folder, "model")
        if not (checkpoint / "model_index.json").is_file():
            make_checkpoint(FAMILIES["sd_turbo"], checkpoint)
        if not (checkpoint.parent / "taesd").is_dir():
            make_tiny_vae(checkpoint.parent / "taesd")
        pipe = Pipeline.from_pretrained(checkpoint, device="cpu", tiny_vae=checkpoint.parent / "taesd")
        rows = [draw(pipe, arguments.steps, seed, Path(folder)) for seed in range(arguments.runs + 1)][1:]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    share = 1 - medians["denoiser"] / medians["whole"]
    for name, seconds in medians.items():
        print(f"{name:>10}: {seconds:.3f} s, {seconds / medians['whole']:.1%}")
    print(
        json.dumps(
            {"device": device_name(torch.device("cpu")), "steps": arguments.steps, "fixed": share, "seconds": medians}
        )
    )


if __name__ == "__main__":
    main()
