"""Families whose prompts Gemma reads: Lumina 2 and Sana."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, flow, gemma_text, gemma_tokenizer, seeded, vae


def build_lumina() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = gemma_tokenizer()
    transformer = seeded(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(512, 64, 64),
            cap_feat_dim=32,
        )
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(levels=4, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=gemma_text(tokenizer),
        tokenizer=tokenizer,
    )


def build_sana() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = gemma_tokenizer()
    autoencoder = seeded(
        lambda: diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        )
    )
    transformer = seeded(
        lambda: diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=32,
            sample_size=16,
        )
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer),
        vae=autoencoder,
        transformer=transformer,
        scheduler=flow(shift=7.0),
    )


SIZE = {"height": 32, "width": 32}
LUMINA = Family(
    "Lumina 2",
    build_lumina,
    {"num_inference_steps": 2, **SIZE},
    {"steps": 2, **SIZE},
)
PLAIN = {"use_resolution_binning": False}
SANA = Family("Sana", build_sana, {"num_inference_steps": 2, **PLAIN, **SIZE}, {"steps": 2, "arguments": PLAIN, **SIZE})
