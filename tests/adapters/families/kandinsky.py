"""Kandinsky 2.1, 2.2 (a prior and a decoder, in one combined pipeline) and 3."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import (
    Family,
    clip_images,
    clip_text,
    clip_tokenizer,
    clip_vision,
    prior,
    seeded,
    simple_attention_unet,
    t5_text,
    t5_tokenizer,
)

WIDTH = 32


def movq(levels: int = 2) -> Any:
    diffusers: Any = import_module("diffusers")

    return seeded(
        lambda: diffusers.VQModel(
            block_out_channels=(32,) * levels,
            down_block_types=(*("DownEncoderBlock2D",) * (levels - 1), "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * (levels - 1)),
            latent_channels=4,
            vq_embed_dim=4,
            num_vq_embeddings=12,
            norm_num_groups=4,
            norm_type="spatial",
        )
    )


def noise(kind: str) -> Any:
    diffusers: Any = import_module("diffusers")

    return getattr(diffusers, kind)(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, prediction_type="epsilon"
    )


def prior_parts() -> dict[str, Any]:
    diffusers: Any = import_module("diffusers")

    tokenizer = clip_tokenizer()
    return {
        "prior_prior": prior(16),
        "prior_image_encoder": clip_vision(WIDTH),
        "prior_text_encoder": clip_text(tokenizer, projected=True),
        "prior_tokenizer": tokenizer,
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        "prior_image_processor": clip_images(),
    }


def build_21() -> Any:
    diffusers: Any = import_module("diffusers")
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
    from transformers import XLMRobertaTokenizer

    from tests.adapters.tiny import LETTERS

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁", *LETTERS.replace(" ", "")]
    tokenizer = XLMRobertaTokenizer(vocab=[(piece, -float(index > 4)) for index, piece in enumerate(pieces)])
    config = MCLIPConfig(
        numDims=WIDTH,
        transformerDimensions=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=len(tokenizer),
    )
    return diffusers.KandinskyCombinedPipeline(
        text_encoder=seeded(lambda: MultilingualCLIP(config)),
        tokenizer=tokenizer,
        unet=simple_attention_unet(
            in_channels=4,
            out_channels=8,
            encoder_hid_dim=WIDTH,
            cross_attention_dim=WIDTH,
            encoder_hid_dim_type="text_image_proj",
            addition_embed_type="text_image",
        ),
        scheduler=noise("DDIMScheduler"),
        movq=movq(),
        **prior_parts(),
    )


def build_22(in_channels: int = 4) -> Any:
    diffusers: Any = import_module("diffusers")

    return diffusers.KandinskyV22CombinedPipeline(
        unet=simple_attention_unet(
            in_channels=in_channels,
            out_channels=8,
            encoder_hid_dim=WIDTH,
            cross_attention_dim=WIDTH,
            encoder_hid_dim_type="image_proj",
            addition_embed_type="image",
        ),
        scheduler=noise("DDPMScheduler"),
        movq=movq(),
        **prior_parts(),
    )


def build_3() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = t5_tokenizer()
    network = seeded(
        lambda: diffusers.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=WIDTH,
        )
    )
    return diffusers.Kandinsky3Pipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer),
        unet=network,
        scheduler=noise("DDPMScheduler"),
        movq=movq(levels=4),  # the pipeline counts on a factor of 8
    )


BY_HAND = {"num_inference_steps": 2, "prior_num_inference_steps": 2, "height": 32, "width": 32}
SETTINGS = {"steps": 2, "arguments": {"prior_num_inference_steps": 2}, "height": 32, "width": 32}
K21 = Family("Kandinsky 2.1", build_21, BY_HAND, SETTINGS, steps=4)
K22 = Family("Kandinsky 2.2", build_22, BY_HAND, SETTINGS, steps=4)
K3 = Family(
    "Kandinsky 3",
    build_3,
    {"num_inference_steps": 2, "height": 64, "width": 64},
    {"steps": 2, "height": 64, "width": 64},
)
