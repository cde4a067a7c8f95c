"""Where the noise of an image comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class ImageNoise:
    """Unit noise (B, C, h, w) for a batch: one CPU generator per image, so an image's noise depends on its seed alone.

    Drawn in fp32, the numbers are those of `torch.Generator("cpu").manual_seed(seed)` in any library.

    Args:
        seeds: of the images.
        shape: of one image's noise (C, h, w).
        device: where it is to be.
        variations: of each image the seed that the noise it begins with is turned to, and how far, 0 … 1; None turns nothing.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        variations: Sequence[tuple[int, float] | None] = (),
    ) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape, self._device, self._variations, self._drawn = shape, device, variations, 0

    def first(self) -> Tensor:
        """Give the noise that the images begin with: what a call gives, turned toward that of the variations."""
        before, noise = self._drawn, self()
        for index, variation in enumerate(self._variations):
            if variation is not None:
                seed, share = variation
                other = ImageNoise([seed], self._shape, self._device)
                for _ in range(before):
                    other()
                noise[index] = turned(noise[index], other()[0], share)
        return noise

    def __call__(self) -> Tensor:
        self._drawn += 1
        # Not in torch's default dtype and device, which belong to the host program.
        drawn = [
            torch.randn(self._shape, generator=generator, dtype=torch.float32, device="cpu")
            for generator in self.generators
        ]
        if self._device.type != "cuda":
            return torch.stack(drawn).to(self._device)
        # From memory that the GPU reads by itself, so that nobody waits for it before the next step is drawn.
        pinned = torch.empty((len(drawn), *self._shape), dtype=torch.float32, device="cpu", pin_memory=True)
        return torch.stack(drawn, out=pinned).to(self._device, non_blocking=True)


def turned(noise: Tensor, other: Tensor, share: float) -> Tensor:
    """Turn noise toward other noise, (C, h, w) each: 0 gives the first, 1 the other, all between are as strong as noise.

    It is spherical interpolation ("Animating Rotation with Quaternion Curves", 1985, p. 247) of each column of each channel:
    (sin((1 - t) a) x + sin(t a) y) / sin(a), a the angle between them. A1111's variations are made so.
    """
    cosine = F.cosine_similarity(noise, other, dim=1, eps=1e-12).clamp(-1, 1)[:, None]  # (C, 1, w)
    angle = cosine.arccos()
    if share in (0, 1) or bool((angle.sin() < 1e-4).any()):  # the same noise, or its opposite
        return torch.lerp(noise, other, share)
    return (((1 - share) * angle).sin() * noise + (share * angle).sin() * other) / angle.sin()
