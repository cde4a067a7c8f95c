"""FLUX.1: packed latents, and the scale of guidance as an input (dev) or none (schnell)."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, clip_text, clip_tokenizer, flow, seeded, t5_text, t5_tokenizer, vae


def build(*, guided: bool) -> Any:
    diffusers: Any = import_module("diffusers")

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guided,
        )
    )
    return diffusers.FluxPipeline(
        scheduler=flow(use_dynamic_shifting=guided, shift=3.0 if guided else 1.0),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=clip_text(clip),
        tokenizer=clip,
        text_encoder_2=t5_text(t5),
        tokenizer_2=t5,
        transformer=transformer,
    )


SIZE = {"height": 32, "width": 32}
DEV = Family(
    "FLUX.1 dev",
    lambda: build(guided=True),
    {"num_inference_steps": 2, "max_sequence_length": 32, "true_cfg_scale": 2.0, **SIZE},
    {"steps": 2, "arguments": {"max_sequence_length": 32, "true_cfg_scale": 2.0}, **SIZE},
)
SCHNELL = Family(
    "FLUX.1 schnell",
    lambda: build(guided=False),
    {"num_inference_steps": 2, "max_sequence_length": 32, "guidance_scale": 0.0, **SIZE},
    {"steps": 2, "guidance_scale": 0.0, "arguments": {"max_sequence_length": 32}, **SIZE},
)
