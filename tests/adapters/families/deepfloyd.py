"""DeepFloyd IF: pixels, denoised as they are; its first stage."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, seeded, t5_text, t5_tokenizer


def build() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = t5_tokenizer()
    unet = seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=32,
            in_channels=3,
            out_channels=6,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            encoder_hid_dim=32,
            cross_attention_dim=32,
            attention_head_dim=4,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        )
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
