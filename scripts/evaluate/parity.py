"""Show that genpipe draws what diffusers draws, on a full-size checkpoint of random weights.

    python -m scripts.evaluate.parity --family sd15
    python -m scripts.evaluate.parity --family sdxl --device cuda
    python -m scripts.evaluate.parity --family sd15 --beside control

Makes the checkpoint, draws one prompt and seed with diffusers' pipeline and with genpipe in fp32, with two or three
solvers, and compares images and final latents. Stable Diffusion 1.x and 2.x are drawn at 256 × 256; SDXL, SDXL Turbo and
the SDXL refiner, which changes an image, at 512 × 512, from weights that are stored in fp16. `--beside image` changes an
image with any family, `--beside control` shows it one through a ControlNet of random weights. A changed seed must fail the
same comparison, and the image must have contrast, or the agreement would mean nothing. On a GPU both multiply without TF32.
The last line is one JSON object. One pipeline is in memory at a time: SDXL's weights in fp32 are 13.9 GB, its files 6.9 GB
of temporary disk.
"""

import argparse
import gc
import importlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genpipe.pipeline import Pipeline
from scripts.make.checkpoint import FAMILIES, NEGATIVE, PROMPT, Family, make_checkpoint, make_controlnet

# Their type stubs lag behind them.
diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

SEED = 7
LARGEST_PIXEL_DIFFERENCE, LARGEST_LATENT_DIFFERENCE, LEAST_CONTRAST = 1.0, 1e-3, 20.0

Drawn = tuple[np.ndarray, torch.Tensor]  # an image (H, W, 3) of 0 … 255, and its final latents


def original(size: int) -> Image.Image:
    """A smooth image to begin from."""
    noise = np.random.default_rng(SEED).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def drawn_by_diffusers(family: Family, directory: Path, steps: int, device: str) -> dict[str, Drawn]:
    """Each solver's image and latents."""
    parts: dict[str, Any] = {}
    if family.control:
        parts["controlnet"] = diffusers.ControlNetModel.from_pretrained(directory / "controlnet", dtype=torch.float32)
    pipe = getattr(diffusers, family.pipeline).from_pretrained(directory, dtype=torch.float32, **parts).to(device)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    shape: dict[str, Any] = {"height": family.size, "width": family.size}
    if family.strength is not None:
        shape = {"image": original(family.size), "strength": family.strength}
    elif family.control:
        shape["image"] = original(family.size)
    results = {}
    for solver, (name, settings) in family.solvers.items():
        pipe.scheduler = getattr(diffusers, name).from_config(config, **settings)
        final: dict[str, torch.Tensor] = {}

        def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any], final: dict = final) -> dict[str, Any]:
            final["latents"] = values["latents"].clone()
            return values

        image = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=steps,
            guidance_scale=family.guidance,
            generator=torch.Generator("cpu").manual_seed(SEED),
            callback_on_step_end=keep,
            **shape,
        ).images[0]
        results[solver] = (np.asarray(image, dtype=np.float32), final["latents"].cpu())
    return results


def drawn_by_genpipe(pipe: Pipeline, family: Family, solver: str, steps: int, seed: int) -> Drawn:
    """The same by genpipe."""
    latents: list[torch.Tensor] = []
    settings: dict[str, Any] = {"negative_prompt": NEGATIVE} if family.guidance > 1 else {}
    if family.strength is not None:
        settings |= {"image": original(family.size), "strength": family.strength}
    elif family.control:
        settings["control"] = original(family.size)
    image = pipe(
        PROMPT,
        height=family.size,
        width=family.size,
        steps=steps,
        seed=seed,
        sampler=solver,
        guidance_scale=family.guidance,
        callback=lambda state: latents.append(state.latents),
        **settings,
    )
    assert isinstance(image, Image.Image)
    return np.asarray(image, dtype=np.float32), latents[-1].cpu()


def compare(ours: Drawn, theirs: Drawn) -> dict[str, float]:
    """The largest differences: of a pixel, and of a latent against the largest."""
    return {
        "pixel_difference": float(np.abs(ours[0] - theirs[0]).max()),
        "latent_difference": float((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()),
    }


def agrees(difference: dict[str, float]) -> bool:
    """Whether differences are no more than rounding."""
    return (
        difference["pixel_difference"] <= LARGEST_PIXEL_DIFFERENCE
        and difference["latent_difference"] <= LARGEST_LATENT_DIFFERENCE
    )


def check(family: Family, directory: Path, steps: int, device: str = "cpu") -> dict[str, Any]:
    """Draw with both, print how they differ, and say whether they agree. In this process nothing multiplies in TF32 then."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    make_checkpoint(family, directory, device=device)
    controls = [directory / "controlnet"] if family.control else []
    for folder in controls:
        make_controlnet(directory, folder)
    gc.collect()
    references = drawn_by_diffusers(family, directory, steps, device)
    gc.collect()
    pipe = Pipeline.from_pretrained(directory, device=device, dtype="fp32", control_model=controls)
    rows, ok = {}, True
    for solver, reference in references.items():
        row: dict[str, Any] = compare(drawn_by_genpipe(pipe, family, solver, steps, SEED), reference)
        row["contrast"] = float(reference[0].std())
        row["agrees"] = agrees(row) and row["contrast"] > LEAST_CONTRAST
        ok = ok and row["agrees"]
        rows[solver] = row
        print(f"{solver:>16}: pixels differ by {row['pixel_difference']:.0f}/255 at most, latents by "
              f"{row['latent_difference']:.1e} relative, contrast {row['contrast']:.0f}/255")  # fmt: skip
    solver = next(iter(references))
    changed = compare(drawn_by_genpipe(pipe, family, solver, steps, SEED + 1), references[solver])
    print(f"another seed, {solver}: pixels differ by {changed['pixel_difference']:.0f}/255")
    return {"ok": ok and not agrees(changed), "solvers": rows, "changed_seed": changed}


def _with_image(family: Family) -> Family:
    pipeline = family.pipeline if family.strength is not None else family.pipeline.replace("Pip", "Img2ImgPip")
    return replace(family, pipeline=pipeline, strength=0.5, steps=8)


def _with_control(family: Family) -> Family:
    return replace(family, pipeline=family.pipeline.replace("Pip", "ControlNetPip"), control=True)


# What a family is drawn with besides a prompt.
BESIDE = {"image": _with_image, "control": _with_control}


def main() -> int:
    """Check one family; 0 where both agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--family", choices=list(FAMILIES), default="sd15", help="shape of the checkpoint (%(default)s)"
    )
    parser.add_argument("--beside", choices=BESIDE, help="give an image to begin from, or one to control with")
    parser.add_argument("--steps", type=int, help="solver steps (4, for the refiner 8)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(%(default)s)")
    arguments = parser.parse_args()
    family = FAMILIES[arguments.family]
    if arguments.beside is not None:
        family = BESIDE[arguments.beside](family)
    with tempfile.TemporaryDirectory() as folder:
        steps = family.steps if arguments.steps is None else arguments.steps
        result = check(family, Path(folder), steps, arguments.device)
    versions = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
    print(json.dumps({"family": arguments.family, "beside": arguments.beside, **result, **versions}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
