"""The names of single files: how CompVis, A1111, ComfyUI and Stability call the tensors that `layout` knows as diffusers'.

These files number the blocks of the U-Net through all levels, so that its table depends on how many each level has. As in
`layout`, the tables are pure renaming, and work both ways.
"""

from dataclasses import replace

from genpipe.checkpoints.layout import (
    CONTROLNET,
    T2I_ADAPTER,
    TEXT_ENCODER,
    TRANSFORMER,
    UNET,
    VAE,
    Layout,
    Names,
    under,
)
from genpipe.models.controlnet import ControlNetConfig
from genpipe.models.t2i_adapter import T2IAdapterConfig
from genpipe.models.unet_config import UNetConfig

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CONTROL_PREFIX = "control_model."
# Where the text encoders are, and whether as transformers or as OpenCLIP calls their tensors.
SD1_TEXT, SD2_TEXT = "cond_stage_model.transformer.", "cond_stage_model.model."
FIRST_TEXT, SECOND_TEXT = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
ONLY_TEXT = "conditioner.embedders.0.model."

_RESIDUAL: Names = (
    ("norm1.{}", "in_layers.0.{}"),
    ("conv1.{}", "in_layers.2.{}"),
    ("embedding.{}", "emb_layers.1.{}"),
    ("norm2.{}", "out_layers.0.{}"),
    ("conv2.{}", "out_layers.3.{}"),
    ("shortcut.{}", "skip_connection.{}"),
)
_UNET: Names = (
    ("conv_in.{}", "input_blocks.0.0.{}"),
    ("norm_out.{}", "out.0.{}"),
    ("conv_out.{}", "out.2.{}"),
    ("time_embedding.linear1.{}", "time_embed.0.{}"),
    ("time_embedding.linear2.{}", "time_embed.2.{}"),
    ("time_embedding.guidance.{}", "time_embed.cond_proj.{}"),
    ("added_embedding.linear1.{}", "label_emb.0.0.{}"),
    ("added_embedding.linear2.{}", "label_emb.0.2.{}"),
)


def unet(config: UNetConfig, prefix: str = UNET_PREFIX) -> Layout:
    """The table of a U-Net of that config."""
    rows, last = [*_UNET], len(config.channels) - 1
    block = 1
    for level, layers in enumerate(config.layers):
        for index in range(layers):
            rows += under(f"down.{level}.residuals.{index}", f"input_blocks.{block}.0", _RESIDUAL)
            rows += under(f"down.{level}.transformers.{index}", f"input_blocks.{block}.1", TRANSFORMER)
            block += 1
        if level < last:
            rows.append((f"down.{level}.resample.conv.{{}}", f"input_blocks.{block}.0.op.{{}}"))
            block += 1
    rows += under("middle.residuals.0", "middle_block.0", _RESIDUAL)
    rows += under("middle.transformers.0", "middle_block.1", TRANSFORMER)
    rows += under("middle.residuals.1", "middle_block.2", _RESIDUAL)
    block = 0
    for up in range(last + 1):  # from the coarsest
        level = last - up
        for index in range(config.layers[level] + 1):
            rows += under(f"up.{up}.residuals.{index}", f"output_blocks.{block}.0", _RESIDUAL)
            rows += under(f"up.{up}.transformers.{index}", f"output_blocks.{block}.1", TRANSFORMER)
            block += 1
        if level > 0:
            place = 2 if config.attention_up[level] else 1
            rows.append((f"up.{up}.resample.conv.{{}}", f"output_blocks.{block - 1}.{place}.conv.{{}}"))
    return replace(UNET, names=tuple(rows), prefix=prefix)


def controlnet(config: ControlNetConfig, prefix: str = CONTROL_PREFIX) -> Layout:
    """The table of a ControlNet of that config."""
    convs = 2 * (len(config.image_channels) - 1)
    rows = [
        *unet(config).names,
        ("image_embedding.conv_in.{}", "input_hint_block.0.{}"),
        # Activations have odd numbers.
        *((f"image_embedding.convs.{conv}.{{}}", f"input_hint_block.{2 * conv + 2}.{{}}") for conv in range(convs)),
        ("image_embedding.conv_out.{}", f"input_hint_block.{2 * convs + 2}.{{}}"),
        ("zero_skips.{}.{}", "zero_convs.{}.0.{}"),
        ("zero_bottom.{}", "middle_block_out.0.{}"),
    ]
    return replace(CONTROLNET, names=tuple(rows), prefix=prefix)


def t2i_adapter(config: T2IAdapterConfig, prefix: str) -> Layout:
    """The table of a T2I-Adapter of that config as its authors call its tensors: blocks are numbered through all levels."""
    if config.form == "light_adapter":
        rows = [(ours, theirs.replace("resnets", "body")) for ours, theirs in T2I_ADAPTER.names]
        return replace(T2I_ADAPTER, names=tuple(rows), prefix=prefix)
    rows = [("conv_in.{}", "conv_in.{}")]
    for level in range(len(config.maps)):
        first = level * config.residuals
        rows.append((f"levels.{level}.project_in.{{}}", f"body.{first}.in_conv.{{}}"))
        for index in range(config.residuals):
            rows.append((f"levels.{level}.residuals.{index}.conv{{}}.{{}}", f"body.{first + index}.block{{}}.{{}}"))
    return replace(T2I_ADAPTER, names=tuple(rows), prefix=prefix)


_VAE_RESIDUAL: Names = (
    ("norm{}.{}", "norm{}.{}"),
    ("conv{}.{}", "conv{}.{}"),
    ("shortcut.{}", "nin_shortcut.{}"),
)
_VAE_MIDDLE: Names = (
    *under("residuals.0", "block_1", _VAE_RESIDUAL),
    ("attentions.0.norm.{}", "attn_1.norm.{}"),
    # Matrices that these files hold as 1 × 1 convolutions.
    ("attentions.0.attention.query.{}", "attn_1.q.{}#C"),
    ("attentions.0.attention.key.{}", "attn_1.k.{}#C"),
    ("attentions.0.attention.value.{}", "attn_1.v.{}#C"),
    ("attentions.0.attention.out.{}", "attn_1.proj_out.{}#C"),
    *under("residuals.1", "block_2", _VAE_RESIDUAL),
)
_VAE_ENDS: Names = (("conv_in.{}", "conv_in.{}"), ("norm_out.{}", "norm_out.{}"), ("conv_out.{}", "conv_out.{}"))


def vae(levels: int, prefix: str = VAE_PREFIX) -> Layout:
    """The table of an autoencoder of so many levels; these files count the decoder's from the finest."""
    rows = [
        *under("encoder", "encoder", _VAE_ENDS),
        *under("encoder.down.{}.residuals.{}", "encoder.down.{}.block.{}", _VAE_RESIDUAL),
        ("encoder.down.{}.resample.conv.{}", "encoder.down.{}.downsample.conv.{}"),
        *under("encoder.middle", "encoder.mid", _VAE_MIDDLE),
        ("to_moments.{}", "quant_conv.{}"),
        ("from_latents.{}", "post_quant_conv.{}"),
        *under("decoder", "decoder", _VAE_ENDS),
        *under("decoder.middle", "decoder.mid", _VAE_MIDDLE),
    ]
    for level in range(levels):
        ours, theirs = f"decoder.up.{level}", f"decoder.up.{levels - 1 - level}"
        rows += under(f"{ours}.residuals.{{}}", f"{theirs}.block.{{}}", _VAE_RESIDUAL)
        rows.append((f"{ours}.resample.conv.{{}}", f"{theirs}.upsample.conv.{{}}"))
    return replace(VAE, names=tuple(rows), aliases=(), harmless=("loss.",), prefix=prefix)


_OPEN_CLIP_LAYER: Names = (
    ("norm{}.{}", "ln_{}.{}"),
    *(
        (f"attention.{name}.{kind}", f"attn.in_proj_{kind}#{third}")
        for third, name in enumerate(("query", "key", "value"))
        for kind in ("weight", "bias")
    ),
    ("attention.out.{}", "attn.out_proj.{}"),
    ("feed_forward.linear1.{}", "mlp.c_fc.{}"),
    ("feed_forward.linear2.{}", "mlp.c_proj.{}"),
)
_OPEN_CLIP: Names = (
    ("token_embedding.weight", "token_embedding.weight"),
    ("position_embedding.weight", "positional_embedding"),
    *under("layers.{}", "transformer.resblocks.{}", _OPEN_CLIP_LAYER),
    ("final_norm.{}", "ln_final.{}"),
    ("projection.weight", "text_projection#T"),
    # As some merges have it, the right way round; what is written is the row above.
    ("projection.weight", "text_projection.weight"),
    ("projection.weight", "text_projection.weight.weight"),
)
# Of the image's side and of training, and the projection where our network has none.
_OPEN_CLIP_EXTRAS = ("logit_scale", "attn_mask", "text_projection", "text_projection.weight")


def open_clip(folder: str, prefix: str, *, layers: int, projected: bool) -> Layout:
    """The table of a text encoder that OpenCLIP trained.

    Args:
        folder: its name in the diffusers layout.
        prefix: what its tensors' names begin with.
        layers: how many our network has; one more in the file, as in Stable Diffusion 2's, is left out.
        projected: whether our network has the projection of the pooled text.
    """
    extras = (name for name in _OPEN_CLIP_EXTRAS if not (projected and "projection" in name))
    return replace(
        TEXT_ENCODER,
        folder=folder,
        names=_OPEN_CLIP,
        aliases=(),
        harmless=(*extras, f"transformer.resblocks.{layers}."),
        prefix=prefix,
    )


def transformers_text(folder: str, prefix: str, *, projected: bool) -> Layout:
    """The table of a text encoder that such a file holds under transformers' names."""
    extras = ("logit_scale", *(() if projected else ("text_projection.weight",)))
    return replace(TEXT_ENCODER, folder=folder, harmless=(*TEXT_ENCODER.harmless, *extras), prefix=prefix)
