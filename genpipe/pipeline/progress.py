"""What a caller sees of a batch that is being drawn."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from genpipe.images import Picture


@dataclass(frozen=True)
class Progress:
    """One finished step of a batch.

    Attributes:
        step, steps: how many steps are done, and how many there are: the solver's, or for a diffusers scheduler the
            network's evaluations.
        latents: (B, C, h, w) fp32, still noisy until the last. Of a pipeline of diffusers, what its scheduler made for the
            images that it is drawing now, and at the last step the finished images, uint8 (B, 3, H, W).
        preview: gives the batch as rough images, cheap enough for every step: one pixel per latent pixel, by a linear
            map, or at full size where the pipeline has a tiny autoencoder.
    """

    step: int
    steps: int
    latents: Tensor
    preview: Callable[[], list[Picture]]
