"""Show that genpipe draws what diffusers draws, on a full-size checkpoint of random weights.

    python -m scripts.evaluate.parity --family sd15

Builds the checkpoint with diffusers, draws one prompt and seed with diffusers' pipeline and with genpipe in fp32, with two
or three solvers, and compares images and final latents. Stable Diffusion 1.x and 2.x are drawn at 256 × 256; SDXL, SDXL
Turbo and the SDXL refiner, which changes an image, at 512 × 512, from weights that are stored in fp16. A changed seed must
fail the same comparison, and the image must have contrast, or the agreement would mean nothing. The last line is one JSON
object. One pipeline is in memory at a time: SDXL's weights in fp32 are 13.9 GB, its files 6.9 GB of temporary disk.
"""

import argparse
import gc
import importlib
import json
import sys
import tempfile
from dataclasses import dataclass, field
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

PROMPT, NEGATIVE, SEED = "a pirate ship on a stormy sea, oil painting", "blurry", 7
LARGEST_PIXEL_DIFFERENCE, LARGEST_LATENT_DIFFERENCE, LEAST_CONTRAST = 1.0, 1e-3, 20.0

Drawn = tuple[np.ndarray, torch.Tensor]  # an image (H, W, 3) of 0 … 255, and its final latents


@dataclass(frozen=True)
class Family:
    """A checkpoint as it was published, and how it is drawn.

    Attributes:
        pipeline: the class in diffusers.
        texts: configs of its text encoders by their folder; the last is projected where there are two, or `pooled`.
        unet, vae: their configs, where they differ from the classes' own.
        scheduler: its class, and what its config says besides `BETAS`.
        solvers: genpipe's name: the class in diffusers, and what is changed of its config.
        index: what `model_index.json` says besides the parts.
        size: height and width in pixels.
        steps: of the solvers, unless asked otherwise.
        guidance: its scale.
        strength: share of the schedule that changes an image; None draws from noise.
        stored: the dtype of the files.
    """

    pipeline: str
    texts: dict[str, dict[str, Any]]
    unet: dict[str, Any]
    scheduler: tuple[str, dict[str, Any]]
    solvers: dict[str, tuple[str, dict[str, Any]]]
    vae: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    size: int = 256
    steps: int = 4
    guidance: float = 7.5
    strength: float | None = None
    stored: torch.dtype = torch.float32

    @property
    def pooled(self) -> bool:
        """Whether its U-Net takes pooled text and sizes."""
        return "addition_embed_type" in self.unet


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "hidden_act": "quick_gelu", "projection_dim": 768}  # fmt: skip
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
          "hidden_act": "gelu", "projection_dim": 512}  # fmt: skip
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "hidden_act": "gelu", "projection_dim": 1280}  # fmt: skip
XL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_UNET = {
    **XL_UNET,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
LEADING: dict[str, Any] = {"timestep_spacing": "leading"}
XL: dict[str, Any] = {"vae": {"scaling_factor": 0.13025, "force_upcast": True}, "size": 512, "guidance": 5.0,
                      "stored": torch.float16}  # fmt: skip
FAMILIES = {
    "sd15": Family(
        "StableDiffusionPipeline", {"text_encoder": CLIP_L}, {"cross_attention_dim": 768, "attention_head_dim": 8},
        ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
        {"pndm": ("PNDMScheduler", {}), "euler_a": ("EulerAncestralDiscreteScheduler", {}),
         "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})},
    ),
    "sd21": Family(
        "StableDiffusionPipeline", {"text_encoder": CLIP_H},
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
         "upcast_attention": True, "sample_size": 96},
        ("DDIMScheduler", {"prediction_type": "v_prediction", "set_alpha_to_one": False, "clip_sample": False}),
        {"ddim": ("DDIMScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
         "dpmpp_2m": ("DPMSolverMultistepScheduler", {})},
    ),
    "sdxl": Family(
        "StableDiffusionXLPipeline", {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}, XL_UNET,
        ("EulerDiscreteScheduler", LEADING),
        {"euler": ("EulerDiscreteScheduler", {}), "dpmpp_2m": ("DPMSolverMultistepScheduler", {})},
        index={"force_zeros_for_empty_prompt": True}, **XL,
    ),
    "sdxl_turbo": Family(
        "StableDiffusionXLPipeline", {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}, {**XL_UNET, "sample_size": 64},
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        {"euler_a": ("EulerAncestralDiscreteScheduler", {}), "lcm": ("LCMScheduler", {})},
        index={"force_zeros_for_empty_prompt": True}, **{**XL, "guidance": 0.0},
    ),
    "sdxl_refiner": Family(
        "StableDiffusionXLImg2ImgPipeline", {"text_encoder_2": CLIP_G}, REFINER_UNET,
        ("EulerDiscreteScheduler", LEADING),
        {"euler": ("EulerDiscreteScheduler", {}), "dpmpp_2m": ("DPMSolverMultistepScheduler", {})},
        index={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}, strength=0.5,
        **{**XL, "steps": 8},
    ),
}  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def build_checkpoint(family: Family, directory: Path) -> None:
    """Save a checkpoint of random weights with diffusers; each network is in the stored dtype before the next is made."""
    torch.manual_seed(0)
    train_tokenizer([PROMPT, NEGATIVE], 600).save(directory / "learned")
    parts: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    for name, shape in family.texts.items():
        # 2 is what the published files say: pooled text is read at the largest id, which ends the prompt.
        config = transformers.CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, eos_token_id=2, **shape)
        projected = family.pooled and name == list(family.texts)[-1]
        kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        parts[name] = kind(config).to(family.stored)
        learned = transformers.CLIPTokenizer.from_pretrained(directory / "learned")
        parts[name.replace("text_encoder", "tokenizer")] = learned
    parts["vae"] = diffusers.AutoencoderKL(**{
        "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "sample_size": 512, **family.vae,
    })  # fmt: skip
    unet = diffusers.UNet2DConditionModel(**family.unet)
    # Fresh weights draw a flat grey: scale the last layers until noise is drawn with contrast.
    with torch.no_grad():
        noise = torch.randn(1, 4, 32, 32)
        parts["vae"].decoder.conv_out.weight.mul_(0.5 / parts["vae"].decode(noise).sample.std())
        given: dict[str, Any] = {"encoder_hidden_states": torch.randn(1, 77, unet.config.cross_attention_dim)}
        if family.pooled:
            pooled = list(family.texts.values())[-1]["projection_dim"]
            numbers = (
                unet.config.projection_class_embeddings_input_dim - pooled
            ) // unet.config.addition_time_embed_dim
            sizes = torch.full((1, numbers), 256.0)
            given["added_cond_kwargs"] = {"text_embeds": torch.randn(1, pooled), "time_ids": sizes}
        unet.conv_out.weight.mul_(1.0 / unet(noise, 500, **given).sample.std())
    parts["vae"].to(family.stored)
    name, settings = family.scheduler
    if not family.pooled:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = getattr(diffusers, family.pipeline)(
        **parts, unet=unet.to(family.stored), scheduler=getattr(diffusers, name)(**BETAS, **settings), **family.index
    )
    pipe.save_pretrained(directory)


def original(size: int) -> Image.Image:
    """A smooth image to begin from."""
    noise = np.random.default_rng(SEED).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def drawn_by_diffusers(family: Family, directory: Path, steps: int) -> dict[str, Drawn]:
    """Each solver's image and latents."""
    pipe = getattr(diffusers, family.pipeline).from_pretrained(directory, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    shape: dict[str, Any] = {"height": family.size, "width": family.size}
    if family.strength is not None:
        shape = {"image": original(family.size), "strength": family.strength}
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
        results[solver] = (np.asarray(image, dtype=np.float32), final["latents"])
    return results


def drawn_by_genpipe(pipe: Pipeline, family: Family, solver: str, steps: int, seed: int) -> Drawn:
    """The same by genpipe."""
    latents: list[torch.Tensor] = []
    settings: dict[str, Any] = {"negative_prompt": NEGATIVE} if family.guidance > 1 else {}
    if family.strength is not None:
        settings |= {"image": original(family.size), "strength": family.strength}
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
    return np.asarray(image, dtype=np.float32), latents[-1]


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


def check(family: Family, directory: Path, steps: int) -> dict[str, Any]:
    """Draw with both, print how they differ, and say whether they agree."""
    build_checkpoint(family, directory)
    gc.collect()
    references = drawn_by_diffusers(family, directory, steps)
    gc.collect()
    pipe = Pipeline.from_pretrained(directory, device="cpu", dtype="fp32")
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


def main() -> int:
    """Check one family; 0 where both agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--family", choices=list(FAMILIES), default="sd15", help="shape of the checkpoint (%(default)s)"
    )
    parser.add_argument("--steps", type=int, help="solver steps (4, for the refiner 8)")
    arguments = parser.parse_args()
    family = FAMILIES[arguments.family]
    with tempfile.TemporaryDirectory() as folder:
        steps = family.steps if arguments.steps is None else arguments.steps
        result = check(family, Path(folder), steps)
    versions = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
    print(json.dumps({"family": arguments.family, **result, **versions}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
