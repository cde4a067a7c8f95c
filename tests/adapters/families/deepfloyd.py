"""DeepFloyd IF: pixels, denoised as they are; its first stage."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, simple_attention_unet, t5_text, t5_tokenizer


def build() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = t5_tokenizer()
    unet = simple_attention_unet(
        sample_size=32,
        in_channels=3,
        out_channels=6,
        encoder_hid_dim=32,
        cross_attention_dim=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        act_fn="gelu",
    )
    return diffusers.IFPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range", thresholding=True, prediction_type="epsilon"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


FAMILY = Family("DeepFloyd IF", build, {"num_inference_steps": 2}, {"steps": 2})
