"""Small, cheap images of latents that are still being denoised."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from genpipe.images import Picture, to_pil
from genpipe.models.finite import float32_copy
from genpipe.models.latent_map import colours, fit_map
from genpipe.models.vae import VAE


class LatentPreview:
    """A linear map from a latent pixel to the mean colour of the pixels that it stands for, fitted to one autoencoder.

    The first call fits it by least squares on a few small decoded images; later calls cost next to nothing.
    """

    def __init__(self, vae: Callable[[], AbstractContextManager[VAE]]) -> None:
        """Take a function that lends the autoencoder, with its weights in memory."""
        self._vae = vae
        self._map: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> list[Picture]:
        """Turn scaled latents (B, C, h, w) into B images of w × h pixels."""
        if self._map is None:
            with self._vae() as vae:
                # In fp32: some autoencoders overflow 16 bits.
                self._map = fit_map(float32_copy(vae).decode, vae.config.latent_channels, latents.device)
        return to_pil(colours(latents, self._map))
