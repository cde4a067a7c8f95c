"""Small, cheap images of latents that are still being denoised."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from genpipe.images import Picture, to_pil
from genpipe.models.finite import float32_copy
from genpipe.models.vae import VAE


class LatentPreview:
    """A linear map from a latent pixel to the mean colour of the pixels that it stands for, fitted to one autoencoder.

    The first call fits it by least squares on a few small decoded images; later calls cost next to nothing.
    """

    def __init__(self, vae: Callable[[], AbstractContextManager[VAE]]) -> None:
        """Take a function that lends the autoencoder, with its weights in memory."""
        self._vae = vae
        self._map: Tensor | None = None  # (C + 1, 3), the last row constant

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> list[Picture]:
        """Turn scaled latents (B, C, h, w) into B images of w × h pixels."""
        if self._map is None:
            self._map = self._fit(latents.device)
        return to_pil(torch.einsum("bchw,cr->brhw", latents.float(), self._map[:-1]) + self._map[-1][:, None, None])

    def _fit(self, device: torch.device) -> Tensor:
        with self._vae() as vae:
            # Smooth latents, since the map is to show colours, which change slowly.
            seeded = torch.Generator("cpu").manual_seed(0)
            coarse = torch.randn(
                (8, vae.config.latent_channels, 4, 4), generator=seeded, dtype=torch.float32, device="cpu"
            )
            latents = F.interpolate(coarse, scale_factor=2, mode="bicubic").to(device)
            # In fp32: some autoencoders overflow 16 bits.
            pixels = F.avg_pool2d(float32_copy(vae).decode(latents), vae.config.factor)  # (8, 3, 8, 8)
        inputs = latents.movedim(1, -1).flatten(0, 2)
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=-1)
        return torch.linalg.lstsq(inputs.cpu(), pixels.movedim(1, -1).flatten(0, 2).cpu()).solution.to(device)
