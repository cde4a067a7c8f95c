"""How many of an image's evaluations are made in full: all of them, or fewer, by name. Imports no torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """What is left out.

    Attributes:
        guided: guidance is applied where sigma / alpha is above the first and not above the second ("Applying Guidance in
            a Limited Interval Improves Sample and Distribution Quality in Diffusion Models", 2024); elsewhere the prompt
            is evaluated alone.
        refresh: the deep features of the denoiser are computed at one of so many steps and kept for the others
            ("DeepCache: Accelerating Diffusion Models for Free", 2023).
        tiny: images are decoded by the tiny autoencoder, where the pipeline has one.
    """

    guided: tuple[float, float] = (0.0, math.inf)
    refresh: int = 1
    tiny: bool = False


# The interval is that of the paper's Stable Diffusion XL.
SPEEDS = {
    "exact": Speed(),
    "balanced": Speed(guided=(0.28, 5.42), refresh=2),
    "draft": Speed(guided=(0.28, 5.42), refresh=4, tiny=True),
}
