"""PixArt-Σ: T5, and a transformer that has learned its sizes."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, seeded, t5_text, t5_tokenizer, vae


def build() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = t5_tokenizer()
    transformer = seeded(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            norm_elementwise_affine=False,
        )
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer),
        vae=vae(),
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(),
    )


FAMILY = Family(
    "PixArt-Σ",
    build,
    {"num_inference_steps": 2, "use_resolution_binning": False, "max_sequence_length": 24},
    {"steps": 2, "arguments": {"use_resolution_binning": False, "max_sequence_length": 24}},
)
