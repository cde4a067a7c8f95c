"""Checkpoints of random weights, in the shape of published ones, written as genpipe saves them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genpipe.checkpoints import load_checkpoint, save_checkpoint
from genpipe.checkpoints.layout import CONTROLNET
from genpipe.models.conditioning import Conditioning
from genpipe.models.controlnet import ControlNet, ControlNetConfig
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import train_tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

PROMPT, NEGATIVE = "a pirate ship on a stormy sea, oil painting", "blurry"


@dataclass(frozen=True)
class Family:
    """A checkpoint as it was published, and how it is drawn.

    Attributes:
        pipeline: the class in diffusers.
        texts: configs of its text encoders by their folder; the last is projected where there are two, or `pooled`.
        unet, vae: their configs, where they differ from the classes' own.
        scheduler: its class, and what its config says besides `BETAS`.
        solvers: that it is compared with, genpipe's name: the class in diffusers, and what is changed of its config.
        size: height and width in pixels.
        steps: of the solvers, unless asked otherwise.
        guidance: its scale.
        strength: share of the schedule that changes an image; None draws from noise.
        control: whether a ControlNet shows it an image.
        stored: the dtype of the files.
    """

    pipeline: str
    texts: dict[str, dict[str, Any]]
    unet: dict[str, Any]
    scheduler: tuple[str, dict[str, Any]]
    solvers: dict[str, tuple[str, dict[str, Any]]]
    vae: dict[str, Any] = field(default_factory=dict)
    size: int = 256
    steps: int = 4
    guidance: float = 7.5
    strength: float | None = None
    control: bool = False
    stored: torch.dtype = torch.float32

    @property
    def pooled(self) -> bool:
        """Whether its U-Net takes pooled text and sizes."""
        return "addition_embed_type" in self.unet


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "hidden_act": "quick_gelu", "projection_dim": 768}  # fmt: skip
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
          "hidden_act": "gelu", "projection_dim": 512}  # fmt: skip
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "hidden_act": "gelu", "projection_dim": 1280}  # fmt: skip
XL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_UNET = {
    **XL_UNET,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
LEADING: dict[str, Any] = {"timestep_spacing": "leading"}
XL: dict[str, Any] = {"vae": {"scaling_factor": 0.13025, "force_upcast": True}, "size": 512, "guidance": 5.0,
                      "stored": torch.float16}  # fmt: skip
FAMILIES = {
    "sd15": Family(
        "StableDiffusionPipeline", {"text_encoder": CLIP_L}, {"cross_attention_dim": 768, "attention_head_dim": 8},
        ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
        {"pndm": ("PNDMScheduler", {}), "euler_a": ("EulerAncestralDiscreteScheduler", {}),
         "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})},
    ),
    "sd21": Family(
        "StableDiffusionPipeline", {"text_encoder": CLIP_H},
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
         "upcast_attention": True, "sample_size": 96},
        ("DDIMScheduler", {"prediction_type": "v_prediction", "set_alpha_to_one": False, "clip_sample": False}),
        {"ddim": ("DDIMScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
         "dpmpp_2m": ("DPMSolverMultistepScheduler", {})},
    ),
    "sd_turbo": Family(
        "StableDiffusionPipeline", {"text_encoder": CLIP_H},
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        {"euler": ("EulerDiscreteScheduler", {}), "lcm": ("LCMScheduler", {})},
        size=512, steps=1, guidance=0.0, stored=torch.float16,
    ),
    "sdxl": Family(
        "StableDiffusionXLPipeline", {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}, XL_UNET,
        ("EulerDiscreteScheduler", LEADING),
        {"euler": ("EulerDiscreteScheduler", {}), "dpmpp_2m": ("DPMSolverMultistepScheduler", {})},
        **XL,
    ),
    "sdxl_turbo": Family(
        "StableDiffusionXLPipeline", {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}, {**XL_UNET, "sample_size": 64},
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        {"euler_a": ("EulerAncestralDiscreteScheduler", {}), "lcm": ("LCMScheduler", {})},
        **{**XL, "guidance": 0.0},
    ),
    "sdxl_refiner": Family(
        "StableDiffusionXLImg2ImgPipeline", {"text_encoder_2": CLIP_G}, REFINER_UNET,
        ("EulerDiscreteScheduler", LEADING),
        {"euler": ("EulerDiscreteScheduler", {}), "dpmpp_2m": ("DPMSolverMultistepScheduler", {})},
        strength=0.5, **{**XL, "steps": 8},
    ),
}  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


VAE_SHAPE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}


def narrow(family: Family) -> Family:
    """The same family with narrow networks: every width a sixteenth or less, every transformer one or two blocks deep."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    texts = {name: {**shape, **text, "projection_dim": 24} for name, shape in family.texts.items()}
    levels = family.unet.get("block_out_channels", (320, 640, 1280, 1280))
    unet = {
        **family.unet,
        "block_out_channels": tuple(width // 16 for width in levels),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 32 * len(texts),
        "sample_size": 8,
    }
    if family.pooled:
        numbers = 5 if len(levels) == 4 else 6
        unet |= {"transformer_layers_per_block": 1, "addition_time_embed_dim": 8}
        unet["projection_class_embeddings_input_dim"] = 24 + numbers * 8
    vae = {**family.vae, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    return replace(family, texts=texts, unet=unet, vae=vae, size=64)


def make_controlnet(checkpoint: Path, directory: Path) -> None:
    """Save a ControlNet of random weights for a checkpoint, as diffusers saves it; it adds about as much as is there."""
    torch.manual_seed(1)
    loaded = load_checkpoint(checkpoint)
    unet = loaded.unet
    own = {each.name: getattr(unet.config, each.name) for each in fields(unet.config)}
    depths = unet.config.depth_up if unet.config.depth_up is None else (1,) * len(unet.config.channels)
    halvings = loaded.vae.config.factor.bit_length() - 1
    shape = {"depth_up": depths, "image_channels": ControlNetConfig.image_channels[: halvings + 1]}
    network = ControlNet(ControlNetConfig(**{**own, **shape}))
    for name, parameter in network.named_parameters():
        if name.startswith("zero_") and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    directory.mkdir(parents=True)
    dtype = next(unet.parameters()).dtype
    state = {CONTROLNET.theirs(key): tensor.to(dtype) for key, tensor in network.state_dict().items()}
    save_file(state, directory / "diffusion_pytorch_model.safetensors")
    (directory / "config.json").write_text(json.dumps(network.config.to_dict()))


def make_checkpoint(
    family: Family, directory: Path, *, words: Sequence[str] = (PROMPT, NEGATIVE), device: str | torch.device = "cpu"
) -> None:
    """Save a checkpoint of random weights, always the same on one kind of device.

    Fresh weights draw a flat grey: the last layers are scaled until noise is drawn with contrast.

    Args:
        family: its shape.
        directory: where to.
        words: what its tokenizer learns from.
        device: makes the random numbers; a GPU makes those of SDXL in a second.
    """
    torch.manual_seed(0)
    tokenizer = train_tokenizer(list(words), 600)
    encoders = []
    with torch.device(device):
        for name, shape in family.texts.items():
            projected = family.pooled and name == list(family.texts)[-1]
            kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
            config = TextEncoderConfig.from_dict({**shape, "architectures": [kind]})
            encoders.append(TextEncoder(config).to(family.stored))
        vae, unet = VAE(VAEConfig.from_dict({**VAE_SHAPE, **family.vae})), UNet(UNetConfig.from_dict(family.unet))
        with torch.no_grad():
            noise = torch.randn(1, 4, 32, 32)
            vae.decoder.conv_out.weight.mul_(0.5 / vae.decode(noise).std())
            pooled, sizes = None, None
            if unet.config.added_channels is not None and unet.config.added_time_channels is not None:
                width = list(family.texts.values())[-1]["projection_dim"]
                count = (unet.config.added_channels - width) // unet.config.added_time_channels
                pooled, sizes = torch.randn(1, width), torch.full((1, count), 256.0)
            prompt = Conditioning(torch.randn(1, 77, unet.config.context_channels), pooled, sizes)
            unet.conv_out.weight.mul_(1.0 / UNetDenoiser(unet, [500.0], prompt)(noise, 500.0).std())
    name, settings = family.scheduler
    save_checkpoint(
        directory,
        text_encoders=encoders,
        tokenizers=[tokenizer] * len(encoders),
        unet=unet.to(family.stored),
        vae=vae.to(family.stored),
        scheduler_config={"_class_name": name, **BETAS, **settings},
    )
