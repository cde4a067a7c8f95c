"""Families whose prompts Qwen reads: Qwen-Image, Z-Image and Kandinsky 5."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import Family, clip_text, clip_tokenizer, flow, qwen_tokenizer, seeded, vae


def reader(tokenizer: Any, width: int = 16) -> Any:
    """Qwen2.5-VL, which reads images, too."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "vocab_size": len(tokenizer),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
        vision_end_token_id=1,
        vision_start_token_id=2,
    )
    return seeded(lambda: Qwen2_5_VLForConditionalGeneration(config))


def build_image() -> Any:
    diffusers: Any = import_module("diffusers")

    tokenizer = qwen_tokenizer()
    autoencoder = seeded(
        lambda: diffusers.AutoencoderKLQwenImage(
            base_dim=24,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    )
    transformer = seeded(
        lambda: diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        )
    )
    return diffusers.QwenImagePipeline(
        scheduler=flow(), vae=autoencoder, text_encoder=reader(tokenizer), tokenizer=tokenizer, transformer=transformer
    )


def build_z() -> Any:
    diffusers: Any = import_module("diffusers")
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one['role'] }}\n{{ one['content'] }}<|im_end|>\n{% endfor %}"
    )
    config = Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        head_dim=8,
    )
    transformer = seeded(
        lambda: diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        )
    )
    return diffusers.ZImagePipeline(
        scheduler=flow(),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=seeded(lambda: Qwen3Model(config)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


SIZE = {"height": 32, "width": 32}
IMAGE = Family(
    "Qwen-Image",
    build_image,
    {"num_inference_steps": 2, **SIZE},
    {"steps": 2, **SIZE},
)
Z = Family(
    "Z-Image",
    build_z,
    {"num_inference_steps": 2, "max_sequence_length": 64, **SIZE},
    {"steps": 2, "arguments": {"max_sequence_length": 64}, **SIZE},
)


def build_kandinsky() -> Any:
    diffusers: Any = import_module("diffusers")

    # The published processor reads images and videos, too, for which it wants torchvision; of texts it makes the same.
    tokenizer, clip = qwen_tokenizer(), clip_tokenizer(77)
    transformer = seeded(
        lambda: diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=32,
            time_dim=16,
            out_visual_dim=4,
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
        )
    )
    return diffusers.Kandinsky5T2IPipeline(
        transformer=transformer,
        vae=vae(levels=4, mid_block_add_attention=False),  # the pipeline counts on a factor of 8
        text_encoder=reader(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(clip),
        tokenizer_2=clip,
        scheduler=flow(),
    )


K5 = Family(
    "Kandinsky 5",
    build_kandinsky,
    {"num_inference_steps": 2, "guidance_scale": 1.0},  # at no size smaller than 640x1408
    {"steps": 2, "guidance_scale": 1.0},
    large=True,
)
