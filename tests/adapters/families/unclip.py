"""unCLIP, which DALL-E 2 is (a prior, a decoder and two networks of super-resolution), and Stable unCLIP."""

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
    vae,
)

WIDTH = 32


def build() -> Any:
    diffusers: Any = import_module("diffusers")
    moved: Any = import_module("diffusers.pipelines.deprecated.unclip")

    tokenizer = clip_tokenizer()
    decoder = simple_attention_unet(
        sample_size=16, in_channels=3, out_channels=6, cross_attention_dim=WIDTH, class_embed_type="identity"
    )

    def enlarge() -> Any:
        return seeded(
            lambda: diffusers.UNet2DModel(
                sample_size=32,
                in_channels=6,
                out_channels=3,
                down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
                up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
                block_out_channels=(8, 16),
                layers_per_block=1,
                norm_num_groups=4,
            )
        )

    return diffusers.UnCLIPPipeline(
        prior=prior(16),
        decoder=decoder,
        text_encoder=clip_text(tokenizer, projected=True),
        tokenizer=tokenizer,
        text_proj=seeded(
            lambda: moved.UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=32, cross_attention_dim=WIDTH)
        ),
        super_res_first=enlarge(),
        super_res_last=enlarge(),
        prior_scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        decoder_scheduler=diffusers.UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    )


def build_stable() -> Any:
    diffusers: Any = import_module("diffusers")
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    tokenizer = clip_tokenizer()
    unet = seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            attention_head_dim=(2, 4),
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * WIDTH,
            cross_attention_dim=WIDTH,
            layers_per_block=1,
            norm_num_groups=4,
            use_linear_projection=True,
        )
    )
    return diffusers.StableUnCLIPPipeline(
        prior_tokenizer=tokenizer,
        prior_text_encoder=clip_text(tokenizer, projected=True),
        prior=prior(16),
        prior_scheduler=diffusers.DDPMScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            clip_sample_range=5.0,
            beta_schedule="squaredcos_cap_v2",
        ),
        image_normalizer=seeded(lambda: StableUnCLIPImageNormalizer(embedding_dim=WIDTH)),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=clip_text(tokenizer),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False
        ),
        vae=vae(),
    )


def build_variations() -> Any:
    """Variations of an image, which its own embedding is decoded for."""
    diffusers: Any = import_module("diffusers")
    parts = {name: part for name, part in build().components.items() if not name.startswith("prior")}
    return diffusers.UnCLIPImageVariationPipeline(
        **parts, feature_extractor=clip_images(), image_encoder=clip_vision(WIDTH)
    )


STEPS = {"prior_num_inference_steps": 2, "super_res_num_inference_steps": 2}
UNCLIP = Family(
    "unCLIP",
    build,
    {"decoder_num_inference_steps": 2, **STEPS},
    {"steps": 2, "arguments": STEPS},
    steps=6,
    negative=False,
)
STABLE = Family(
    "Stable unCLIP",
    build_stable,
    {"num_inference_steps": 2, "prior_num_inference_steps": 2},
    {"steps": 2, "arguments": {"prior_num_inference_steps": 2}},
    steps=4,
)
