"""Stable Cascade and Würstchen's line: a prior and a decoder, in one combined pipeline."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, clip_text, clip_tokenizer, seeded

WIDTH = 32


def unet(**config: Any) -> Any:
    models: Any = import_module("diffusers.models")

    return seeded(
        lambda: models.StableCascadeUNet(
            conditioning_dim=16,
            block_out_channels=(16, 32),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(1, 1),
            clip_text_pooled_in_channels=WIDTH,
            switch_level=(False,),
            block_types_per_layer=(
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            **config,
        )
    )


def build() -> Any:
    diffusers: Any = import_module("diffusers")
    moved: Any = import_module("diffusers.pipelines.deprecated.wuerstchen")

    tokenizer = clip_tokenizer()
    text = clip_text(tokenizer, projected=True)
    vqgan = seeded(
        lambda: moved.PaellaVQModel(bottleneck_blocks=1, levels=2, latent_channels=4, embed_dim=8, num_vq_embeddings=16)
    )
    return diffusers.StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        decoder=unet(in_channels=4, out_channels=4, patch_size=1, effnet_in_channels=4, kernel_size=3),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=vqgan,
        prior_prior=unet(
            in_channels=4, out_channels=4, clip_text_in_channels=WIDTH, clip_image_in_channels=WIDTH, kernel_size=3
        ),
        prior_text_encoder=text,
        prior_tokenizer=tokenizer,
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


FAMILY = Family(
    "Stable Cascade",
    build,
    {"num_inference_steps": 2, "prior_num_inference_steps": 2, "height": 128, "width": 128},
    {"steps": 2, "height": 128, "width": 128, "arguments": {"prior_num_inference_steps": 2}},
    steps=4,
)
