"""What a file of tensors is, by their names and shapes alone."""

import re

from genpipe.checkpoints.shapes import Shapes

FLUX, SD3, OTHER = "model of the FLUX family", "model of Stable Diffusion 3", "model of a family that diffusers draws"
CHECKPOINT, UNET, VAE, TEXT_ENCODER, LORA, EMBEDDING, CONTROLNET, T2I_ADAPTER, IP_ADAPTER, IMAGE_ENCODER = (
    "checkpoint",
    "U-Net",
    "VAE",
    "text encoder",
    "LoRA",
    "textual inversion",
    "ControlNet",
    "T2I-Adapter",
    "IP-Adapter",
    "CLIP image encoder",
)

# What a name of this form says of the file that it is in; the first row that fits any name decides.
_FORMS: tuple[tuple[str, str], ...] = (
    ("Control-LoRA", r"lora_controlnet(\..*)?"),
    (CONTROLNET, r"control_model\..*"),
    (CHECKPOINT, r"model\.diffusion_model\.input_blocks\..*"),
    (LORA, r".*\.(lora_(down|up|mid|A|B)|lora\.(down|up)|lora_linear_layer|to_(q|k|v|out)_lora)(\..*)?"),
    (LORA, r".*\.(hada_w1_a|lokr_w[12](_a)?|dora_scale|oft_blocks|on_input)"),
    (LORA, r"lora_(unet|te\d?|transformer|prior)_.*\.(diff|diff_b|alpha|w_norm|b_norm|weight)"),
    (IP_ADAPTER, r"(ip_adapter|image_proj)\..*"),
    ("AnimateDiff motion module", r".*motion_modules\..*"),
    (CONTROLNET, r"(input_hint_block|controlnet_cond_embedding|zero_convs)\..*"),
    (T2I_ADAPTER, r"(adapter\.)?body\.\d+\.(resnets|block1|in_conv)\..*"),
    (FLUX, r"(.*\.)?(double_blocks|single_transformer_blocks)\..*"),
    (SD3, r"(.*\.)?joint_blocks\..*"),
    (OTHER, r"(model\.diffusion_model|net|model)\.(\w+_)?(layers|blocks|embed\w*)\..*"),
    (OTHER, r"transformer_blocks\..*"),
    (UNET, r"(unet\.)?(down_blocks\.\d+\.(resnets|attentions)|conv_in|input_blocks)\..*"),
    (IMAGE_ENCODER, r"(.*\.)?(vision_model|visual)\..*"),
    (TEXT_ENCODER, r"(.*\.)?(text_model\.encoder\.layers|transformer\.resblocks|encoder\.layers\.\d+\.self_attn)\..*"),
    (VAE, r"(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|down|up|mid|layers|down_blocks|up_blocks)\..*"),
    ("T5 text encoder", r"(.*\.)?encoder\.block\.\d+\.layer\..*"),
    (EMBEDDING, r"string_to_param(\..*)?|emb_params|clip_[lg]"),
    (
        "upscaler",
        r"(model\.\d+\.(weight|sub\.)|conv_first\.|RRDB_trunk\.|body\.\d+\.(rdb1\.|weight)|layers\.\d+\.residual_group).*",
    ),
)


def kind_of(shapes: Shapes) -> str:
    """What the file with these tensors is: "checkpoint", "LoRA", "VAE", …; "" if nothing that is known here.

    A checkpoint has at least a U-Net under CompVis' name of it; "U-Net" is one alone, under CompVis' or diffusers' names.
    """
    for kind, form in _FORMS:
        if any(re.fullmatch(form, key) for key in shapes):
            return kind
    # A lone vector, or a few, under the word that they stand for.
    alone = [key for key, shape in shapes.items() if len(shape) in (1, 2) and not key.endswith((".weight", ".bias"))]
    return EMBEDDING if len(alone) == len(shapes) == 1 else ""


def describe(kind: str) -> str:
    """The kind in a sentence: "a VAE", "an IP-Adapter", "no kind of file that genpipe knows"."""
    if not kind:
        return "no kind of file that genpipe knows"
    article = "an" if kind[0] in "AIu" else "a"
    return f"{article} {kind}"
