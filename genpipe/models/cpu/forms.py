"""Which form of an operation a CPU runs: looked up in a table that ships, so that no image depends on a timing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# By instruction set, from the widest to the narrowest, and by dtype; `python -m scripts.benchmark.step --tune` measures and writes it.
TABLE = Path(__file__).with_name("cpu_forms.json")
# What can be packed: see `kind_of`.
PACKABLE = ("linear", "convolution 1x1", "convolution 3x3", "upsampling")


@dataclass(frozen=True)
class Forms:
    """The forms of one instruction set in one dtype; the default is plain torch.

    Attributes:
        packed: the kinds of layers whose weights are packed, of `PACKABLE`.
        phases: whether upsampling and its convolution become one transposed convolution.
        winograd: whether a 3×3 convolution that `suits_winograd` is a `WinogradConv`, and an upsampling that
            `suits_difference` a `DifferenceUpsample`.
        winograd4: the fewest channels, in and out, of a convolution that is a `Winograd4Conv` if it `suits_winograd4`; None
            for never. For fp32 alone, which hides its rounding anywhere.
        patches: the fewest channels, in and out, of a 3×3 convolution that is a `PatchConv` where it is neither of the two
            before; None for never.
        fused_gelu: whether oneDNN computes a packed feed-forward layer's GELU inside its product, or torch afterwards: with
            AVX2 oneDNN looks it up in tables, and takes several times as long.
        blocked: from how many keys on self-attention is blocked, by the widest head for which that is so.
        int8: whether wide layers are quantised. Not of the table: it changes images, and is for the caller to say.
        winograd_from, winograd_from_in_vae: the fewest channels, in and out, of a `WinogradConv` in a U-Net and in an
            autoencoder. With fewer it saves less than its rounding is worth in bf16, and the rounding of an autoencoder
            goes into the pixels once, of a U-Net into the latents at every step.
        winograd4_side: the smallest maps, by their side, of a `Winograd4Conv`, which transforms its weights at every call.
        differences_from: the fewest channels of a `DifferenceUpsample`; with fewer, adding takes as long as multiplying
            saves.
        int8_from: the fewest channels, in and out, that int8 pays for: of Stable Diffusion's layers all but the first and
            the last convolution, of the embedded model's none, where quantising takes longer than it saves.
    """

    packed: tuple[str, ...] = ()
    phases: bool = False
    winograd: bool = False
    winograd4: int | None = None
    patches: int | None = None
    fused_gelu: bool = True
    blocked: Mapping[int, int] = field(default_factory=dict)
    int8: bool = False
    winograd_from: int = 512
    winograd_from_in_vae: int = 256
    winograd4_side: int = 32
    differences_from: int = 256
    int8_from: int = 320

    def blocked_from(self, head_channels: int) -> int | None:
        """Look up from how many keys on attention with heads of this width is blocked; None for never."""
        return next((self.blocked[width] for width in sorted(self.blocked) if head_channels <= width), None)


PLAIN = Forms()


def forms_for(instruction_set: str, dtype: torch.dtype, *, table: Path = TABLE) -> Forms:
    """Look up the forms of an instruction set in a dtype; where it has no row, those of the next narrower set that has one.

    What this torch has no operators for stays plain, whatever the table says (`genpipe.models.prepare`).
    """
    rows = json.loads(table.read_text(encoding="utf-8"))
    sets, name = list(rows), str(dtype).removeprefix("torch.")
    narrower = sets[sets.index(instruction_set) :] if instruction_set in sets else []
    row: dict[str, Any] = next((rows[each][name] for each in narrower if name in rows[each]), {})
    known = {key: value for key, value in row.items() if key != "measured"}
    blocked = {int(width): keys for width, keys in row.get("blocked", {}).items()}
    return Forms(**{**known, "packed": tuple(row.get("packed", ())), "blocked": blocked})
