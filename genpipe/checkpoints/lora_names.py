"""The names of LoRA files: which weight of a checkpoint each tensor changes, and as what.

A name is that of a module, by diffusers' path or by that of single files, with dots or (kohya) underscores, after a prefix
for its network; then comes what the tensor is. Underscores cannot be undone, as the paths hold some of their own: so the
names that a checkpoint's own weights would have are made, and looked up.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from genpipe.checkpoints import layout, ldm_layout
from genpipe.checkpoints.checkpoint import Checkpoint

_UNET_PREFIXES = ("lora_unet", "unet", "unet.base_model.model", "base_model.model", "diffusion_model", "lycoris", "")
# By the place of the text encoder in joining order.
_ONLY_TEXT = "lora_te"  # of families with one text encoder
_TEXT_PREFIXES = (
    ("lora_te1", "text_encoder", "text_encoder.base_model.model", "te1", "text_encoders.clip_l.transformer"),
    ("lora_te2", "text_encoder_2", "text_encoder_2.base_model.model", "te2", "text_encoders.clip_g.transformer"),
)
# What a tensor is, by what its name ends in.
_ENDS: tuple[tuple[str, str], ...] = (
    (
        "down",
        r"\.lora_down\.weight|\.lora_A(\.default)?(\.weight)?|\.lora(_linear_layer)?\.down\.weight|_lora\.down\.weight",
    ),
    ("up", r"\.lora_up\.weight|\.lora_B(\.default)?(\.weight)?|\.lora(_linear_layer)?\.up\.weight|_lora\.up\.weight"),
    ("mid", r"\.lora_mid\.weight"),
    ("alpha", r"(_lora)?\.alpha"),
    ("dora", r"\.dora_scale"),
    ("magnitude", r"\.lora_magnitude_vector(\.default)?(\.weight)?"),
    *((name, rf"\.{name}") for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    *(
        (name, rf"\.{name}")
        for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    ),
    ("diff", r"\.diff|\.w_norm"),
    ("diff_b", r"\.diff_b|\.b_norm"),
)
_PATTERNS = [(kind, re.compile(rf"(.+?)(?:{end})")) for kind, end in _ENDS]
# Paths in the files of diffusers before 0.18, whose LoRA layers were inside of the attention's processor.
_OLD = (
    (re.compile(r"\.(attn\d)\.to_(q|k|v)$"), r".\1.processor.to_\2"),
    (re.compile(r"\.(attn\d)\.to_out\.0$"), r".\1.processor.to_out"),
    (re.compile(r"\.self_attn\.(q|k|v|out)_proj$"), r".self_attn.to_\1"),
)


@dataclass(frozen=True)
class Named:
    """A tensor of a LoRA file: the module that it changes, by the file's name of it, and what it is ("down", "alpha")."""

    module: str
    kind: str


def split(key: str) -> Named | None:
    """The module and the kind that a tensor's name says; None if it ends in nothing that is known."""
    for kind, pattern in _PATTERNS:
        if match := pattern.fullmatch(key):
            return Named(match[1], kind)
    return None


class Modules:
    """The modules of a checkpoint that a LoRA may change, by all names that files have for them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._networks: list[tuple[tuple[str, ...], dict[str, str]]] = []
        unet = ldm_layout.unet(checkpoint.unet.config, prefix="")
        self._networks.append((_UNET_PREFIXES, _names("unet", checkpoint.shapes["unet"], (layout.UNET, unet))))
        for prefixes, folder in zip(_TEXT_PREFIXES, checkpoint.family.text_encoders, strict=False):
            prefixes = (_ONLY_TEXT, *prefixes) if len(checkpoint.text_encoders) == 1 else prefixes
            self._networks.append((prefixes, _names(folder, checkpoint.shapes[folder], (layout.TEXT_ENCODER,))))

    def find(self, module: str) -> str | None:
        """Our name of the module that a file calls so: "unet.conv_in"; None if the checkpoint has no such module."""
        name = module.replace(".", "_")
        for prefixes, names in self._networks:
            for prefix in prefixes:
                start = f"{prefix.replace('.', '_')}_" if prefix else ""
                if name.startswith(start) and (found := names.get(name.removeprefix(start))):
                    return found
        return None


def _names(folder: str, keys: Iterable[str], tables: Sequence[layout.Layout]) -> dict[str, str]:
    """Every path of each module of a network, with underscores -> our name of it, with the network's before."""
    found: dict[str, str] = {}
    for key in keys:
        own, _, kind = key.rpartition(".")
        for table in tables:
            path = table.theirs(key).removesuffix(f".{kind}")
            paths = [path, path.removeprefix("text_model."), *(old.sub(new, path) for old, new in _OLD)]
            found |= {each.replace(".", "_"): f"{folder}.{own}" for each in paths}
    return found
