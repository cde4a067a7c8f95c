"""AuraFlow: UMT5, and a flow transformer."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, flow, seeded, t5_text, t5_tokenizer, vae


def build() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = t5_tokenizer()
    transformer = seeded(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pos_embed_max_size=256,
        )
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer, kind="UMT5"),
        vae=vae(),
        transformer=transformer,
        scheduler=flow(),
    )


SIZE = {"height": 32, "width": 32}
FAMILY = Family("AuraFlow", build, {"num_inference_steps": 2, **SIZE}, {"steps": 2, **SIZE})
