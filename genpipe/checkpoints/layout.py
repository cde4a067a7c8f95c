"""Foreign names: how the tensors of a checkpoint in the diffusers layout are called, and what we call them.

Each network has a table of (our name, their name), in which `{}` stands for a number, "weight" or "bias". The networks
have the same tree as the files, so reading and writing is pure renaming, and the tables work both ways.

Where a file's tensor is not ours as it is, its name bears a mark: `#T` for a matrix that is stored transposed, `#C` for
one that is stored as a 1 × 1 convolution, and `#0`, `#1`, `#2` for the thirds of one that holds three of ours, one under
the other.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

Names = tuple[tuple[str, str], ...]
# A name with all its fields left blank -> for each row of the table that is like it, the fields that the row fixes ("{}"
# for a free one) and the other name.
Rules = dict[str, list[tuple[list[str], str]]]
_MARK = re.compile(r"#\w")

_FIELD = re.compile(r"\{\}|\d+|\bweight\b|\bbias\b")


def _rules(names: Iterable[tuple[str, str]]) -> Rules:
    rules: Rules = {}
    for source, target in names:
        rules.setdefault(_FIELD.sub("{}", source), []).append((_FIELD.findall(source), target))
    return rules


def _rename(key: str, rules: Rules) -> str | None:
    """The other name of `key`, None if the rules lack it."""
    fields = _FIELD.findall(key)
    for wanted, target in rules.get(_FIELD.sub("{}", key), ()):
        if all(want in ("{}", field) for want, field in zip(wanted, fields, strict=True)):
            return target.format(*(field for want, field in zip(wanted, fields, strict=True) if want == "{}"))
    return None


@dataclass(frozen=True)
class Layout:
    """Where one network's tensors are and what they are called.

    Attributes:
        folder: the network's folder in a checkpoint.
        stem: its weights' file name up to the first dot or dash.
        names: (our name, their name), one for one.
        aliases: (their name, another name it goes by in some files), for reading alone.
        harmless: names of tensors in some files that the network does not need; all that begin so, after a dot.
        prefix: what their names begin with in the file; tensors whose names do not are another network's.
    """

    folder: str
    stem: str
    names: Names
    aliases: Names = ()
    harmless: tuple[str, ...] = ()
    prefix: str = ""

    def ours(self, key: str) -> str | None:
        """Our name of the file's tensor `key`, aliases included; None for a tensor that is not in the table."""
        if not key.startswith(self.prefix):
            return None
        key = key.removeprefix(self.prefix)
        return _rename(_rename(key, self._canonical) or key, self._read)

    def all_ours(self, key: str) -> list[tuple[str, str]]:
        """(our name, mark) of each of our tensors that the file's tensor `key` holds; [] if it is not in the table."""
        return [(name, mark) for mark in self._marks if (name := self.ours(key + mark)) is not None]

    def is_harmless(self, key: str) -> bool:
        """Whether the file's tensor `key` is one that the network does not need."""
        name = key.removeprefix(self.prefix)
        return key.startswith(self.prefix) and any(
            name.startswith(known) if known.endswith(".") else name == known for known in self.harmless
        )

    def theirs(self, key: str) -> str:
        """The file's name of our tensor `key`, with its mark if it bears one.

        Raises:
            KeyError: the table lacks it.
        """
        name = _rename(key, self._write)
        if name is None:
            raise KeyError(f"{self.folder}: no foreign name for {key}")
        return self.prefix + name

    def is_alias(self, key: str) -> bool:
        """Whether the file's tensor `key` goes by an alias."""
        return _rename(key.removeprefix(self.prefix), self._canonical) is not None

    @cached_property
    def _marks(self) -> list[str]:
        return sorted({"", *(mark for _, theirs in self.names for mark in _MARK.findall(theirs))})

    @cached_property
    def _read(self) -> Rules:
        return _rules((theirs, ours) for ours, theirs in self.names)

    @cached_property
    def _write(self) -> Rules:
        return _rules(self.names)

    @cached_property
    def _canonical(self) -> Rules:
        return _rules((alias, name) for name, alias in self.aliases)


def under(ours: str, theirs: str, names: Names) -> Names:
    return tuple((f"{ours}.{a}", f"{theirs}.{b}") for a, b in names)


_RESIDUAL: Names = (
    ("norm{}.{}", "norm{}.{}"),
    ("conv{}.{}", "conv{}.{}"),
    ("embedding.{}", "time_emb_proj.{}"),
    ("shortcut.{}", "conv_shortcut.{}"),
)
_ATTENTION: Names = (
    ("query.{}", "to_q.{}"),
    ("key.{}", "to_k.{}"),
    ("value.{}", "to_v.{}"),
    ("out.{}", "to_out.0.{}"),
)
TRANSFORMER: Names = (
    ("norm.{}", "norm.{}"),
    ("project_in.{}", "proj_in.{}"),
    ("project_out.{}", "proj_out.{}"),
    ("blocks.{}.norm{}.{}", "transformer_blocks.{}.norm{}.{}"),
    *under("blocks.{}.attention{}", "transformer_blocks.{}.attn{}", _ATTENTION),
    ("blocks.{}.feed_forward.project.{}", "transformer_blocks.{}.ff.net.0.proj.{}"),
    ("blocks.{}.feed_forward.out.{}", "transformer_blocks.{}.ff.net.2.{}"),
)
_ENDS: Names = (("conv_in.{}", "conv_in.{}"), ("norm_out.{}", "conv_norm_out.{}"), ("conv_out.{}", "conv_out.{}"))

UNET = Layout(
    folder="unet",
    stem="diffusion_pytorch_model",
    names=(
        *_ENDS,
        ("time_embedding.linear{}.{}", "time_embedding.linear_{}.{}"),
        ("time_embedding.guidance.{}", "time_embedding.cond_proj.{}"),
        ("added_embedding.linear{}.{}", "add_embedding.linear_{}.{}"),
        ("class_embedding.linear{}.{}", "class_embedding.linear_{}.{}"),
        *under("down.{}.residuals.{}", "down_blocks.{}.resnets.{}", _RESIDUAL),
        *under("down.{}.transformers.{}", "down_blocks.{}.attentions.{}", TRANSFORMER),
        ("down.{}.resample.conv.{}", "down_blocks.{}.downsamplers.0.conv.{}"),
        *under("middle.residuals.{}", "mid_block.resnets.{}", _RESIDUAL),
        *under("middle.transformers.{}", "mid_block.attentions.{}", TRANSFORMER),
        *under("up.{}.residuals.{}", "up_blocks.{}.resnets.{}", _RESIDUAL),
        *under("up.{}.transformers.{}", "up_blocks.{}.attentions.{}", TRANSFORMER),
        ("up.{}.resample.conv.{}", "up_blocks.{}.upsamplers.0.conv.{}"),
    ),
)

CONTROLNET = Layout(
    folder="controlnet",
    stem="diffusion_pytorch_model",
    names=(
        *UNET.names,
        ("image_embedding.conv_in.{}", "controlnet_cond_embedding.conv_in.{}"),
        ("image_embedding.convs.{}.{}", "controlnet_cond_embedding.blocks.{}.{}"),
        ("image_embedding.conv_out.{}", "controlnet_cond_embedding.conv_out.{}"),
        ("zero_skips.{}.{}", "controlnet_down_blocks.{}.{}"),
        ("zero_bottom.{}", "controlnet_mid_block.{}"),
    ),
)

T2I_ADAPTER = Layout(
    folder="t2iadapter",
    stem="diffusion_pytorch_model",
    names=(
        ("conv_in.{}", "conv_in.{}"),
        ("levels.{}.project_in.{}", "body.{}.in_conv.{}"),
        ("levels.{}.residuals.{}.conv{}.{}", "body.{}.resnets.{}.block{}.{}"),
        ("levels.{}.project_out.{}", "body.{}.out_conv.{}"),
    ),
    prefix="adapter.",
)

_MIDDLE: Names = (
    *under("residuals.{}", "resnets.{}", _RESIDUAL),
    ("attentions.{}.norm.{}", "attentions.{}.group_norm.{}"),
    *under("attentions.{}.attention", "attentions.{}", _ATTENTION),
)
# Before diffusers 0.15 the autoencoder's attention was a block of its own, in some files of 1 × 1 convolutions.
_LEGACY_ATTENTION: Names = (
    ("to_q.{}", "query.{}"),
    ("to_k.{}", "key.{}"),
    ("to_v.{}", "value.{}"),
    ("to_out.0.{}", "proj_attn.{}"),
)

VAE = Layout(
    folder="vae",
    stem="diffusion_pytorch_model",
    names=(
        *under("encoder", "encoder", _ENDS),
        *under("encoder.down.{}.residuals.{}", "encoder.down_blocks.{}.resnets.{}", _RESIDUAL),
        ("encoder.down.{}.resample.conv.{}", "encoder.down_blocks.{}.downsamplers.0.conv.{}"),
        *under("encoder.middle", "encoder.mid_block", _MIDDLE),
        ("to_moments.{}", "quant_conv.{}"),
        ("from_latents.{}", "post_quant_conv.{}"),
        *under("decoder", "decoder", _ENDS),
        *under("decoder.middle", "decoder.mid_block", _MIDDLE),
        *under("decoder.up.{}.residuals.{}", "decoder.up_blocks.{}.resnets.{}", _RESIDUAL),
        ("decoder.up.{}.resample.conv.{}", "decoder.up_blocks.{}.upsamplers.0.conv.{}"),
    ),
    aliases=tuple(
        pair
        for half in ("encoder.mid_block.attentions.{}", "decoder.mid_block.attentions.{}")
        for pair in under(half, half, _LEGACY_ATTENTION)
    ),
)

_TEXT: Names = (
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("position_embedding.weight", "embeddings.position_embedding.weight"),
    ("layers.{}.norm{}.{}", "encoder.layers.{}.layer_norm{}.{}"),
    ("layers.{}.attention.query.{}", "encoder.layers.{}.self_attn.q_proj.{}"),
    ("layers.{}.attention.key.{}", "encoder.layers.{}.self_attn.k_proj.{}"),
    ("layers.{}.attention.value.{}", "encoder.layers.{}.self_attn.v_proj.{}"),
    ("layers.{}.attention.out.{}", "encoder.layers.{}.self_attn.out_proj.{}"),
    ("layers.{}.feed_forward.linear{}.{}", "encoder.layers.{}.mlp.fc{}.{}"),
    ("final_norm.{}", "final_layer_norm.{}"),
)

TEXT_ENCODER = Layout(
    folder="text_encoder",
    stem="model",
    names=(
        *((ours, f"text_model.{theirs}") for ours, theirs in _TEXT),
        ("projection.weight", "text_projection.weight"),
    ),
    # Without the prefix, as transformers 5 saves a `CLIPTextModel`.
    aliases=tuple((f"text_model.{theirs}", theirs) for _, theirs in _TEXT),
    # A buffer that transformers saved before 4.31.
    harmless=("text_model.embeddings.position_ids", "embeddings.position_ids"),
)


IMAGE_ENCODER = Layout(
    folder="image_encoder",
    stem="model",
    names=(
        ("class_embedding.weight", "vision_model.embeddings.class_embedding"),
        ("patch_embedding.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("position_embedding.weight", "vision_model.embeddings.position_embedding.weight"),
        ("first_norm.{}", "vision_model.pre_layrnorm.{}"),
        *((ours, f"vision_model.{theirs}") for ours, theirs in _TEXT if ours.startswith("layers.")),
        ("final_norm.{}", "vision_model.post_layernorm.{}"),
        ("projection.weight", "visual_projection.weight"),
    ),
    harmless=("vision_model.embeddings.position_ids", "logit_scale", "text_model.", "text_projection.weight"),
)

_RESAMPLER: Names = (
    ("latents.weight", "latents"),
    ("proj_in.{}", "proj_in.{}"),
    ("layers.{}.norm_image.{}", "layers.{}.0.norm1.{}"),
    ("layers.{}.norm_queries.{}", "layers.{}.0.norm2.{}"),
    ("layers.{}.query.weight", "layers.{}.0.to_q.weight"),
    ("layers.{}.key_value.weight", "layers.{}.0.to_kv.weight"),
    ("layers.{}.out.weight", "layers.{}.0.to_out.weight"),
    ("layers.{}.norm.{}", "layers.{}.1.0.{}"),
    ("layers.{}.linear1.weight", "layers.{}.1.1.weight"),
    ("layers.{}.linear2.weight", "layers.{}.1.3.weight"),
    ("proj_out.{}", "proj_out.{}"),
    ("norm_out.{}", "norm_out.{}"),
)


def ip_adapter(attentions: int) -> Layout:
    """An IP-Adapter's, for a U-Net with so many attentions that read the prompt: only they have odd numbers."""
    rows = [("projection.proj.{}", "image_proj.proj.{}"), ("projection.norm.{}", "image_proj.norm.{}")]
    rows += under("projection", "image_proj", _RESAMPLER)
    for index in range(attentions):
        rows.append((f"keys.{index}.weight", f"ip_adapter.{2 * index + 1}.to_k_ip.weight"))
        rows.append((f"values.{index}.weight", f"ip_adapter.{2 * index + 1}.to_v_ip.weight"))
    return Layout(folder="ip_adapter", stem="ip_adapter", names=tuple(rows))


def text_encoder(folder: str) -> Layout:
    """A text encoder's: "text_encoder", or "text_encoder_2" for the second of Stable Diffusion XL."""
    return replace(TEXT_ENCODER, folder=folder)


_TINY: Names = tuple(
    (name, name)
    for half in ("encoder", "decoder")
    for name in (f"{half}.layers.{{}}.{{}}", f"{half}.layers.{{}}.conv.{{}}.{{}}", f"{half}.layers.{{}}.skip.{{}}")
)


def tiny_vae(folder: str) -> Layout:
    """The tiny autoencoder's: a folder of its own, beside a checkpoint's."""
    return Layout(folder=folder, stem="diffusion_pytorch_model", names=_TINY)
