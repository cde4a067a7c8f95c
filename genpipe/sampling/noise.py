"""Where the noise of an image comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ImageNoise:
    """Unit noise (B, C, h, w) for a batch: one CPU generator per image, so an image's noise depends on its seed alone.

    Drawn in fp32, the numbers are those of `torch.Generator("cpu").manual_seed(seed)` in any library.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape, self._device = shape, device

    def __call__(self) -> Tensor:
        # Not in torch's default dtype and device, which belong to the host program.
        drawn = [
            torch.randn(self._shape, generator=generator, dtype=torch.float32, device="cpu")
            for generator in self.generators
        ]
        return torch.stack(drawn).to(self._device)
