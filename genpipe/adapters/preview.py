"""Small images of the latents that a pipeline of diffusers is denoising."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genpipe.adapters.sizes import channels_of, decoder_of
from genpipe.images import Picture, to_pil
from genpipe.models.latent_map import colours, fit_map
from genpipe.models.tiny_vae import TinyVAE

_SMALL = 8  # pixels of an image a side to one of its preview


class Preview:
    """Shows latents by the linear map of the pipeline's autoencoder; images that are pixels already, smaller.

    Args:
        pipe: the pipeline.
        tiny: a tiny autoencoder for its latents, which then shows them.

    Attributes:
        size: height and width of the images that are drawn now, in pixels.
    """

    def __init__(self, pipe: Any, tiny: TinyVAE | None = None) -> None:
        self.size: tuple[int, int] = (_SMALL, _SMALL)
        self._pipe, self._tiny, self._map = pipe, tiny, None

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> list[Picture]:
        """Give latents, in the form in which the scheduler has them, as rough images; grey where they are none of images."""
        shown = self.colours(latents)
        if shown is None:
            height, width = (max(1, side // _SMALL) for side in self.size)
            shown = torch.zeros(len(latents), 3, height, width)
        return to_pil(shown)

    def colours(self, latents: Tensor) -> Tensor | None:
        """Give the colours (B, 3, h, w) in [-1, 1] of latents; None where they show nothing."""
        if latents.dtype == torch.uint8:
            return self._smaller(latents.float() / 127.5 - 1)
        latents = self._unpacked(latents)
        if latents.ndim != 4:
            return None
        if latents.shape[1] == 3 and latents.shape[2:] == self.size:
            return self._smaller(latents.float())
        decoder = decoder_of(self._pipe)
        if decoder is None or latents.shape[1] != channels_of(decoder):
            return None
        if self._tiny is not None:
            return self._tiny.decode(latents.float())
        if self._map is None:
            self._map = fit_map(self._decode, latents.shape[1], latents.device)
        return colours(latents, self._map)

    def _unpacked(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) of those that a transformer has as tokens, or as a video of one frame."""
        if latents.ndim == 3 and hasattr(self._pipe, "_unpack_latents"):
            latents = self._pipe._unpack_latents(latents, *self.size, self._pipe.vae_scale_factor)
        if latents.ndim == 5 and latents.shape[1] == 1:  # a video of one frame, its channels last
            return latents.squeeze(1).movedim(-1, 1)
        return latents.squeeze(2) if latents.ndim == 5 and latents.shape[2] == 1 else latents

    def _decode(self, latents: Tensor) -> Tensor:
        decoder = decoder_of(self._pipe)
        config, latents = decoder.config, latents.to(decoder.dtype)
        mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and spread is not None:  # of videos, of which an image is one frame
            mean, spread = (torch.tensor(each).to(latents)[:, None, None] for each in (mean, spread))
            return decoder.decode((latents * spread + mean).unsqueeze(2)).sample.squeeze(2).float()
        latents = latents * getattr(config, "scale_factor", 1)
        scaled = latents / (getattr(config, "scaling_factor", None) or 1) + (getattr(config, "shift_factor", None) or 0)
        return decoder.decode(scaled).sample.float()

    def _smaller(self, pixels: Tensor) -> Tensor:
        small = [max(1, side // _SMALL) for side in pixels.shape[-2:]]
        return F.interpolate(pixels, small, mode="area")
