"""Latents to pixels: whole or in tiles, by the memory that there is; in fp32 where 16 bits overflow."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from genpipe.hardware import free_memory, release_freed_memory
from genpipe.messages import Notice
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.models.vae import VAE, VAEConfig

# Side of a tile in latent pixels.
TILE = 64
# Latent pixels around an image without edges that a decoder is shown: about as far as it sees.
RIM = 24
# Tensors of the decoder's width at full size that a whole decode holds at its peak, measured on Stable Diffusion's.
TENSORS = 24
# The share of the free memory that a whole decode may take.
SHARE = 0.8


def decode_bytes(config: VAEConfig, latents: Tensor, itemsize: int) -> int:
    """Estimate what decoding latents (B, C, h, w) whole takes at its peak, in bytes."""
    batch, _, height, width = latents.shape
    return TENSORS * batch * height * width * config.factor**2 * config.channels[0] * itemsize


def choose_tile(tiling: str, config: VAEConfig, latents: Tensor, itemsize: int) -> int | None:
    """Choose the side of the tiles that latents are decoded in, in latent pixels; None decodes them whole.

    Args:
        tiling: "on", "off" or "auto", which uses tiles where a whole decode would not fit into the free memory, and warns.
        itemsize: bytes per number of the autoencoder's dtype.
    """
    if tiling == "off" or max(latents.shape[-2:]) <= TILE:
        return None
    if tiling == "on":
        return TILE
    needed, free = decode_bytes(config, latents, itemsize), free_memory(latents.device)
    if free is None or needed <= SHARE * free:
        return None
    form = (
        "decoding in tiles, whose seams may show slightly: a whole decode takes about {needed} GB, and {free} GB are free; "
        "--vae-tiling off decodes whole all the same"
    )
    warnings.warn(Notice(form, needed=f"{needed / 1e9:.1f}", free=f"{free / 1e9:.1f}"), stacklevel=2)
    return TILE


def decode_joined(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Decode latents (B, C, h, w) of an image without edges, by a decoder that knows edges, on a wider piece of its copies."""
    rim = min(RIM, *latents.shape[-2:])
    pixels = decode(F.pad(latents, (rim,) * 4, mode="circular"))
    cut = rim * pixels.shape[-1] // (latents.shape[-1] + 2 * rim)
    return pixels[..., cut:-cut, cut:-cut]


def decode(vae: VAE, latents: Tensor, tile: int | None, *, model: str, joins: bool = False) -> Tensor:
    """Decode scaled latents (B, C, h, w) to pixels (B, 3, H, W), float32 in about [-1, 1].

    Args:
        tile: side of the tiles in latent pixels; None decodes whole.
        joins: whether the image is one without edges, for which the autoencoder is made; tiles know edges all the same.

    Raises:
        NonFiniteError: the pixels are not finite, in fp32 either.
    """

    def decoded(vae: VAE) -> Tensor:
        if joins and tile is not None:
            return decode_joined(partial(vae.decode, tile=tile), latents).float()
        return vae.decode(latents, tile=tile).float()

    large = latents.shape[-2:].numel() >= TILE**2
    if large and latents.device.type == "cpu" and vae.decoder.norm_out.weight.dtype == torch.float32:
        release_freed_memory()  # what denoising has freed is in pieces that are too small for large maps
    pixels = decoded(vae)
    if not bool(torch.isfinite(pixels).all()):
        pixels = decoded(float32_copy(vae))
    if not bool(torch.isfinite(pixels).all()):
        raise NonFiniteError.of("decoder", vae, model)
    return pixels
