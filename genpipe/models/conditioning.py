"""What the denoiser is told besides the noisy latents and the timestep."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# Tokens that contexts are repeated to at most: 20 chunks of 77.
LONGEST = 1540


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What prompts and images become: the inputs of the denoiser that stay the same over the steps.

    It has one row per prompt. A batch of B images has B rows, or k · B where each image has k prompts, as with
    classifier-free guidance; the rows of all images' first prompts (the negative ones) then come first.

    Attributes:
        context: (rows, T, D), what the text encoders make of each token.
        pooled: (rows, P), one vector for the whole prompt, where the denoiser takes one (SDXL); else None.
        time_ids: (rows, K), sizes in pixels, where the denoiser takes them (SDXL); else None.
        guidance_scale: (rows,), where the denoiser takes the scale as an input (distilled networks); else None.
        extra_channels: (rows, C, h, w), which follow the latents' own channels and are not scaled by the noise level
            (mask and image of an inpainting U-Net); None for none.
        image_tokens: (rows, T', D), of images that are referred to (IP-Adapter); None for none.
        image_scales: (rows,), how much they count; None for none.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    guidance_scale: Tensor | None = None
    extra_channels: Tensor | None = None
    image_tokens: Tensor | None = None
    image_scales: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in self._given().items():
            if len(tensor) != len(self.context):
                raise ValueError(f"{name} has {len(tensor)} rows where the context has {len(self.context)}")

    def __len__(self) -> int:
        return len(self.context)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self._given().values())

    def rows(self, index: slice | Sequence[int]) -> "Conditioning":
        """Some of the rows: `rows(slice(-n, None))` are the last n."""
        chosen = index if isinstance(index, slice) else list(index)
        return replace(self, **{name: tensor[chosen] for name, tensor in self._given().items()})

    def zeroed(self, rows: Sequence[int]) -> "Conditioning":
        """The same with zeros for the prompts of these rows: their context, and their pooled vector where there is one."""
        if not rows:
            return self
        index = torch.tensor(rows, device=self.context.device)
        pooled = None if self.pooled is None else self.pooled.index_fill(0, index, 0.0)
        return replace(self, context=self.context.index_fill(0, index, 0.0), pooled=pooled)

    @staticmethod
    def join(parts: Sequence["Conditioning"]) -> "Conditioning":
        """The rows of all parts, in their order.

        Shorter contexts are repeated, token after token from the first on, to the length that `common_length` gives. A
        context that is repeated a whole number of times says the same to attention: every softmax over its tokens, summed
        over the copies, is what it was.

        Raises:
            ValueError: there are no parts, or some have what others lack.
        """
        if not parts:
            raise ValueError("there is nothing to join: give at least one Conditioning")
        length = common_length(part.context.shape[1] for part in parts)
        given = [part.repeated(length)._given() for part in parts]
        names = set().union(*given)
        for name in names:
            having = sum(name in tensors for tensors in given)
            if having != len(parts):
                raise ValueError(f"{having} of {len(parts)} parts have {name}: all must, or none")
        return replace(parts[0], **{name: torch.cat([tensors[name] for tensors in given]) for name in names})

    def repeated(self, length: int) -> "Conditioning":
        """The same with contexts of this many tokens, repeated from the first on."""
        own = self.context.shape[1]
        if own == length:
            return self
        return replace(self, context=self.context[:, torch.arange(length, device=self.context.device) % own])

    def _given(self) -> dict[str, Tensor]:
        tensors = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in tensors if tensor is not None}


def common_length(lengths: Iterable[int]) -> int:
    """Give the length that contexts are repeated to where they go through the denoiser together.

    It is one that all of them fit into a whole number of times; or the longest, where that would be beyond `LONGEST`.
    """
    distinct = set(lengths)
    common = math.lcm(*distinct)
    return common if common <= LONGEST else max(distinct)
