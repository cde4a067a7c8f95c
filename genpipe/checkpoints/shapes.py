"""The shape of a network from the names and shapes of its tensors in a single file, which comes without a config."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from genpipe.models.controlnet import ControlNetConfig
from genpipe.models.text_encoder import TextEncoderConfig
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAEConfig

# Names, without their prefix, and shapes of one network's tensors.
Shapes = Mapping[str, tuple[int, ...]]

HEAD = 64  # channels per head, in all of them but the U-Net of Stable Diffusion 1


def part(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def count(shapes: Shapes, prefix: str) -> int:
    """How many of prefix + "0.", prefix + "1.", … names begin with, without a gap."""
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)}
    return next(number for number in range(len(numbers) + 1) if str(number) not in numbers)


@dataclass(frozen=True)
class _Names:
    """What the tensors that tell the shape of a U-Net are called, or begin with."""

    conv_in: str
    conv_out: str
    added: str
    guidance: str
    middle: tuple[str, str]  # its first residual block, its transformer


_COMPVIS = _Names(
    conv_in="input_blocks.0.0.weight",
    conv_out="out.2.weight",
    added="label_emb.0.0.weight",
    guidance="time_embed.cond_proj.weight",
    middle=("middle_block.0.", "middle_block.1.transformer_blocks."),
)
_DIFFUSERS = _Names(
    conv_in="conv_in.weight",
    conv_out="conv_out.weight",
    added="add_embedding.linear_1.weight",
    guidance="time_embedding.cond_proj.weight",
    middle=("mid_block.resnets.0.", "mid_block.attentions.0.transformer_blocks."),
)
# (width, transformer blocks) of each residual block of each level, in the order of the pass.
_Levels = list[list[tuple[int, int]]]


def unet_config(shapes: Shapes, *, heads: int | None, sample_size: int, upcast: bool = False) -> UNetConfig:
    """The config of a U-Net by the names of CompVis, or by those of diffusers.

    Args:
        shapes: of its tensors, without a prefix.
        heads: on every level; None for one per 64 channels.
        sample_size: of the latents that it was trained on.
        upcast: whether attention is computed in fp32.

    Raises:
        KeyError: a tensor that every such U-Net has is missing.
        ValueError: it is of a form that genpipe does not have.
    """
    compvis = _COMPVIS.conv_in in shapes
    names = _COMPVIS if compvis else _DIFFUSERS
    down, up = _compvis_levels(shapes) if compvis else (_levels(shapes, "down_blocks"), _levels(shapes, "up_blocks"))
    up.reverse()
    contexts = {shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")}
    if len(contexts) != 1 or len(down) != len(up) or not all((*down, *up)):
        raise ValueError("its U-Net is of a form that genpipe does not have")
    residual, transformer = names.middle
    bottom = count(shapes, transformer)
    middle = "attention" if bottom else "residual" if any(key.startswith(residual) for key in shapes) else None
    depth = [_depth(level, bottom if level is down[-1] and bottom else 1) for level in down]
    depth_up = [_depth(level, own) for level, own in zip(up, depth, strict=True)]
    config = UNetConfig(
        sample_size=sample_size,
        in_channels=shapes[names.conv_in][1],
        out_channels=shapes[names.conv_out][0],
        channels=tuple(level[0][0] for level in down),
        attention=tuple(level[0][1] > 0 for level in down),
        attention_up=tuple(level[0][1] > 0 for level in up),
        layers=tuple(len(level) for level in down),
        depth=tuple(depth),
        depth_up=None if depth == depth_up else tuple(depth_up),
        middle=middle,
        heads=tuple(heads or max(1, level[0][0] // HEAD) for level in down),
        only_cross=(False,) * len(down),
        context_channels=contexts.pop(),
        linear_projection={len(shape) for key, shape in shapes.items() if key.endswith("proj_in.weight")} == {2},
        upcast_attention=upcast,
        guidance_channels=shapes[names.guidance][1] if names.guidance in shapes else None,
        added_time_channels=256 if names.added in shapes else None,
        added_channels=shapes[names.added][1] if names.added in shapes else None,
    )
    if middle == "attention" and config.middle_depth != bottom:
        raise ValueError(
            f"its U-Net has {bottom} transformer blocks in the middle, and {depth[-1]} on the coarsest level"
        )
    return config


def controlnet_config(shapes: Shapes, unet: UNetConfig) -> ControlNetConfig:
    """The config of a ControlNet by the names of CompVis, or by those of diffusers.

    Args:
        shapes: of its tensors, without a prefix.
        unet: that it is to control: what the tensors do not tell, as the number of heads, is as there.

    Raises:
        KeyError: a tensor that every ControlNet has is missing.
    """
    compvis = _COMPVIS.conv_in in shapes
    names = _COMPVIS if compvis else _DIFFUSERS
    down = _compvis_levels(shapes)[0] if compvis else _levels(shapes, "down_blocks")
    residual, transformer = names.middle
    bottom = count(shapes, transformer)
    attention = tuple(level[0][1] > 0 for level in down)
    contexts = {shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")}
    flat = {len(shape) for key, shape in shapes.items() if key.endswith("proj_in.weight")} == {2}
    heads = unet.heads if len(unet.heads) == len(down) else tuple(max(1, level[0][0] // HEAD) for level in down)
    before = "input_hint_block." if compvis else "controlnet_cond_embedding."
    image = [key for key in shapes if key.startswith(before) and key.endswith(".weight")]
    widths = [shapes[key][0] for key in sorted(image, key=_place)[:-1]]
    return ControlNetConfig(
        sample_size=unet.sample_size,
        in_channels=shapes[names.conv_in][1],
        channels=tuple(level[0][0] for level in down),
        attention=attention,
        attention_up=attention,  # it has no way up
        layers=tuple(len(level) for level in down),
        depth=tuple(_depth(level, bottom if level is down[-1] and bottom else 1) for level in down),
        depth_up=(1,) * len(down),
        middle="attention" if bottom else "residual" if any(key.startswith(residual) for key in shapes) else None,
        heads=heads,
        only_cross=(False,) * len(down),
        context_channels=contexts.pop() if len(contexts) == 1 else unet.context_channels,
        linear_projection=flat,
        upcast_attention=unet.upcast_attention,
        added_time_channels=unet.added_time_channels if names.added in shapes else None,
        added_channels=shapes[names.added][1] if names.added in shapes else None,
        image_channels=tuple(widths[::2]),
        norm_groups=unet.norm_groups,
        norm_eps=unet.norm_eps,
        downsample_padding=unet.downsample_padding,
        flip_sin_to_cos=unet.flip_sin_to_cos,
        freq_shift=unet.freq_shift,
    )


def _place(key: str) -> int:
    """Where a convolution that sees a ControlNet's image comes in their order, by either naming."""
    number = re.search(r"\.(\d+)\.", key)
    return int(number[1]) if number else -1 if ".conv_in." in key else 1000


def _depth(level: list[tuple[int, int]], otherwise: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Transformer blocks of each of a level's layers: one number where they agree, `otherwise` where there are none."""
    blocks = tuple(block for _, block in level)
    return otherwise if not blocks[0] else blocks[0] if len(set(blocks)) == 1 else blocks


def _compvis_levels(shapes: Shapes) -> tuple[_Levels, _Levels]:
    def block(prefix: str) -> tuple[int, int]:
        return shapes[f"{prefix}0.out_layers.3.weight"][0], count(shapes, f"{prefix}1.transformer_blocks.")

    down: _Levels = [[]]
    for index in range(1, count(shapes, "input_blocks.")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            down.append([])
        else:
            down[-1].append(block(f"input_blocks.{index}."))
    up: _Levels = [[]]
    for index in range(count(shapes, "output_blocks.")):
        up[-1].append(block(f"output_blocks.{index}."))
        if any(f"output_blocks.{index}.{place}.conv.weight" in shapes for place in (1, 2)):
            up.append([])
    return down, up


def _levels(shapes: Shapes, side: str) -> _Levels:
    """The levels of one direction, by diffusers' names."""
    found: _Levels = []
    for level in range(count(shapes, f"{side}.")):
        prefix = f"{side}.{level}"
        found.append(
            [
                (
                    shapes[f"{prefix}.resnets.{index}.conv2.weight"][0],
                    count(shapes, f"{prefix}.attentions.{index}.transformer_blocks."),
                )
                for index in range(count(shapes, f"{prefix}.resnets."))
            ]
        )
    return found


def vae_config(shapes: Shapes, *, scaling_factor: float, sample_size: int) -> VAEConfig:
    """The config of an autoencoder by the names of CompVis, or by those of diffusers.

    Args:
        shapes: of its tensors, without a prefix.
        scaling_factor: of its latents; the tensors do not tell.
        sample_size: of the images that it was trained on.

    Raises:
        KeyError: a tensor that every such autoencoder has is missing.
    """
    compvis = any(key.startswith("encoder.down.") for key in shapes)
    down, residuals = ("encoder.down", "block") if compvis else ("encoder.down_blocks", "resnets")
    levels = count(shapes, f"{down}.")
    return VAEConfig(
        in_channels=shapes["encoder.conv_in.weight"][1],
        out_channels=shapes["decoder.conv_out.weight"][0],
        latent_channels=shapes["decoder.conv_in.weight"][1],
        channels=tuple(shapes[f"{down}.{level}.{residuals}.0.conv2.weight"][0] for level in range(levels)),
        layers=count(shapes, f"{down}.0.{residuals}."),
        scaling_factor=scaling_factor,
        sample_size=sample_size,
        quant_conv="quant_conv.weight" in shapes,
        post_quant_conv="post_quant_conv.weight" in shapes,
        middle_attention=any(
            key.startswith(("encoder.mid.attn_1.", "encoder.mid_block.attentions.")) for key in shapes
        ),
    )


def open_clip_config(shapes: Shapes, *, projected: bool) -> TextEncoderConfig:
    """The config of a text encoder by the names of OpenCLIP.

    Stable Diffusion 2 reads the last layer but one, and its files hold the last and the projection beside: where no
    projection is wanted and the file has one, the last layer is left out.

    Args:
        shapes: of its tensors, without their prefix.
        projected: whether the pooled text is projected.

    Raises:
        KeyError: a tensor that every such text encoder has is missing.
    """
    vocabulary, width = shapes["token_embedding.weight"]
    layers = count(shapes, "transformer.resblocks.")
    projection = next((key for key in shapes if key.startswith("text_projection")), None)
    if not projected and (projection is not None or (width, layers) == (1024, 24)):
        layers -= 1
    return TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD),
        max_position_embeddings=shapes["positional_embedding"][0],
        hidden_act="gelu",
        eos_token_id=vocabulary - 1,
        # As the file has it, (in, out), or the right way round: square in all that are published.
        projection_dim=shapes[projection or "text_projection"][int(projection == "text_projection")]
        if projected
        else None,
    )


def transformers_config(shapes: Shapes, *, activation: str, projected: bool) -> TextEncoderConfig:
    """The config of a text encoder by the names of transformers, with or without "text_model.".

    Args:
        shapes: of its tensors, without their prefix.
        activation: of its feed-forward layers; the tensors do not tell.
        projected: whether the pooled text is projected.

    Raises:
        KeyError: a tensor that every such text encoder has is missing.
    """
    projection = shapes.get("text_projection.weight")
    shapes = part(shapes, "text_model.") or shapes
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=count(shapes, "encoder.layers."),
        num_attention_heads=max(1, width // HEAD),
        max_position_embeddings=shapes["embeddings.position_embedding.weight"][0],
        hidden_act=activation,
        eos_token_id=vocabulary - 1,
        projection_dim=projection[0] if projection is not None and projected else None,
    )
