"""Show that genpipe draws what diffusers draws, on a full-size checkpoint of random weights.

    python -m scripts.evaluate.parity --family sd15

Builds the checkpoint with diffusers, renders one prompt and seed with `StableDiffusionPipeline` and with genpipe in fp32
at 256 × 256 with three solvers, and compares pictures and final latents. A changed seed must fail the same comparison, and
the picture must have contrast, or the agreement would mean nothing. The last line is one JSON object.
"""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genpipe.models.tokenizer import train_tokenizer
from genpipe.pipeline import Pipeline

# Their type stubs lag behind them.
diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

PROMPT, NEGATIVE, SEED, SIZE = "a pirate ship on a stormy sea, oil painting", "blurry", 7, 256
LARGEST_PIXEL_DIFFERENCE, LARGEST_LATENT_DIFFERENCE, LEAST_CONTRAST = 1.0, 1e-3, 20.0

# Shapes as the published checkpoints state them.
FAMILIES: dict[str, dict[str, Any]] = {
    "sd15": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "hidden_act": "quick_gelu", "projection_dim": 768},
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "scheduler": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
        "solvers": {"pndm": ("PNDMScheduler", {}), "euler_a": ("EulerAncestralDiscreteScheduler", {}),
                    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})},
    },
    "sd21": {
        "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
                 "hidden_act": "gelu", "projection_dim": 512},
        "unet": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
                 "upcast_attention": True, "sample_size": 96},
        "scheduler": ("DDIMScheduler", {"prediction_type": "v_prediction", "set_alpha_to_one": False, "clip_sample": False}),
        "solvers": {"ddim": ("DDIMScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
                    "dpmpp_2m": ("DPMSolverMultistepScheduler", {})},
    },
}  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}  # fmt: skip


def build_checkpoint(family: str, directory: Path) -> None:
    """Save a Stable Diffusion checkpoint of random weights with diffusers, in fp32."""
    shape = FAMILIES[family]
    torch.manual_seed(0)
    text_config = transformers.CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **shape["text"])
    text_encoder = transformers.CLIPTextModel(text_config)
    unet = diffusers.UNet2DConditionModel(**shape["unet"])
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    # Fresh weights draw a flat grey: scale the last layers until noise is drawn with contrast.
    with torch.no_grad():
        noise = torch.randn(1, 4, 32, 32)
        vae.decoder.conv_out.weight.mul_(0.5 / vae.decode(noise).sample.std())
        context = torch.randn(1, 77, text_config.hidden_size)
        unet.conv_out.weight.mul_(1.0 / unet(noise, 500, context).sample.std())
    name, settings = shape["scheduler"]
    train_tokenizer([PROMPT, NEGATIVE], 600).save(directory / "learned")
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(directory / "learned"),
        unet=unet,
        scheduler=getattr(diffusers, name)(**BETAS, **settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)


def diffusers_pictures(
    directory: Path, solvers: dict[str, Any], steps: int
) -> dict[str, tuple[np.ndarray, torch.Tensor]]:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(directory, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    results = {}
    for solver, (name, settings) in solvers.items():
        pipe.scheduler = getattr(diffusers, name).from_config(config, **settings)
        final: dict[str, torch.Tensor] = {}

        def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any], final: dict = final) -> dict[str, Any]:
            final["latents"] = values["latents"].clone()
            return values

        image = pipe(PROMPT, negative_prompt=NEGATIVE, height=SIZE, width=SIZE, num_inference_steps=steps,
                     generator=torch.Generator("cpu").manual_seed(SEED), callback_on_step_end=keep).images[0]  # fmt: skip
        results[solver] = (np.asarray(image, dtype=np.float32), final["latents"])
    return results


def genpipe_picture(pipe: Pipeline, solver: str, steps: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    latents: list[torch.Tensor] = []
    image = pipe(PROMPT, negative_prompt=NEGATIVE, height=SIZE, width=SIZE, steps=steps, seed=seed, sampler=solver,
                 guidance_scale=7.5, callback=lambda state: latents.append(state.latents))  # fmt: skip
    assert isinstance(image, Image.Image)
    return np.asarray(image, dtype=np.float32), latents[-1]


def compare(ours: tuple[np.ndarray, torch.Tensor], theirs: tuple[np.ndarray, torch.Tensor]) -> dict[str, float]:
    return {
        "pixel_difference": float(np.abs(ours[0] - theirs[0]).max()),
        "latent_difference": float((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()),
    }


def agrees(difference: dict[str, float]) -> bool:
    return (
        difference["pixel_difference"] <= LARGEST_PIXEL_DIFFERENCE
        and difference["latent_difference"] <= LARGEST_LATENT_DIFFERENCE
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--family", choices=list(FAMILIES), default="sd15", help="shape of the checkpoint (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=4, help="solver steps (%(default)s)")
    arguments = parser.parse_args()
    solvers = FAMILIES[arguments.family]["solvers"]

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        build_checkpoint(arguments.family, directory)
        references = diffusers_pictures(directory, solvers, arguments.steps)
        pipe = Pipeline.from_pretrained(directory, device="cpu", dtype="fp32")
        rows, ok = {}, True
        for solver, reference in references.items():
            row: dict[str, Any] = compare(genpipe_picture(pipe, solver, arguments.steps, SEED), reference)
            row["contrast"] = float(reference[0].std())
            row["agrees"] = agrees(row) and row["contrast"] > LEAST_CONTRAST
            ok = ok and row["agrees"]
            rows[solver] = row
            print(f"{solver:>16}: pixels differ by {row['pixel_difference']:.0f}/255 at most, latents by "
                  f"{row['latent_difference']:.1e} relative, contrast {row['contrast']:.0f}/255")  # fmt: skip
        solver = next(iter(solvers))
        changed = compare(genpipe_picture(pipe, solver, arguments.steps, SEED + 1), references[solver])
        ok = ok and not agrees(changed)
        print(f"another seed, {solver}: pixels differ by {changed['pixel_difference']:.0f}/255")
    versions = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({"family": arguments.family, "ok": ok, "solvers": rows, "changed_seed": changed, **versions}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
