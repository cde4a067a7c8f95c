"""A linear map from a latent pixel to the mean colour of the pixels that it stands for."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_map(decode: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> Tensor:
    """Fit the map to an autoencoder by least squares, on a few small decoded images.

    Args:
        decode: gives pixels (B, 3, H, W) of latents (B, C, h, w).
        channels: C, of the latents.
        device: of the latents.

    Returns:
        (C + 1, 3), the last row constant.
    """
    # Smooth latents, since the map is to show colours, which change slowly.
    seeded = torch.Generator("cpu").manual_seed(0)
    coarse = torch.randn((8, channels, 4, 4), generator=seeded, dtype=torch.float32, device="cpu")
    latents = F.interpolate(coarse, scale_factor=2, mode="bicubic").to(device)
    pixels = F.adaptive_avg_pool2d(decode(latents), latents.shape[-1])  # (8, 3, 8, 8)
    inputs = latents.movedim(1, -1).flatten(0, 2)
    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=-1)
    return torch.linalg.lstsq(inputs.cpu(), pixels.movedim(1, -1).flatten(0, 2).cpu()).solution.to(device)


def colours(latents: Tensor, fitted: Tensor) -> Tensor:
    """Give the colours (B, 3, h, w) of latents (B, C, h, w) by a map that `fit_map` gave."""
    return torch.einsum("bchw,cr->brhw", latents.float(), fitted[:-1]) + fitted[-1][:, None, None]
