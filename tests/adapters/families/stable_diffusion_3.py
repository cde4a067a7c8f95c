"""Stable Diffusion 3: three text encoders, a transformer over latents of 16 channels."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, clip_text, clip_tokenizer, flow, seeded, t5_text, t5_tokenizer, vae


def build() -> Any:
    diffusers: Any = import_module("diffusers")

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=16,
        )
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=vae(16, shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=clip_text(clip, projected=True),
        tokenizer=clip,
        text_encoder_2=clip_text(clip, projected=True, activation="gelu"),
        tokenizer_2=clip,
        text_encoder_3=t5_text(t5),
        tokenizer_3=t5,
    )


FAMILY = Family("Stable Diffusion 3", build, {"num_inference_steps": 2, "height": 32, "width": 32}, {"steps": 2})
