"""What sizes of images a pipeline of diffusers draws."""

import math
from typing import Any

from genpipe.adapters.signature import Signature

_DENOISERS = ("super_res_first", "transformer", "unet", "decoder")
_DECODERS = ("vae", "movq", "vqgan")
_USUAL = 1024  # of pipelines that say nothing of it, in pixels


def default_size(pipe: Any, signature: Signature) -> tuple[int, int]:
    """Give the height and the width that a pipeline draws where it is told none, in pixels."""
    given = signature.default("height"), signature.default("width")
    if all(isinstance(side, int) for side in given):
        return given
    sample = getattr(pipe, "default_sample_size", None)
    for name in _DENOISERS if sample is None else ():
        sample = getattr(getattr(getattr(pipe, name, None), "config", None), "sample_size", None)
        if sample is not None:
            break
    if sample is None:
        return _USUAL, _USUAL
    height, width = sample if isinstance(sample, list | tuple) else (sample, sample)
    return int(height) * scale(pipe), int(width) * scale(pipe)


def check_size(pipe: Any, size: tuple[int, int]) -> None:
    """Raise ValueError where a pipeline has a list of sizes, as Kandinsky 5, and (height, width) is none of it."""
    sizes = {(height, width) for width, height in getattr(pipe, "resolutions", ())}
    if sizes and size not in sizes:
        known = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"this model draws {known} alone, not {size[1]}x{size[0]}: ask for one of them")


def scale(pipe: Any) -> int:
    """How many pixels a side one latent pixel stands for; 1 for pipelines that denoise pixels."""
    decoder = decoder_of(pipe)
    if decoder is None:
        return 1
    levels = getattr(decoder.config, "block_out_channels", (0,) * 4)
    return int(getattr(pipe, "vae_scale_factor", 2 ** (len(levels) - 1)))


def decoder_of(pipe: Any) -> Any:
    """The part of a pipeline that makes pixels of latents; None where it denoises pixels."""
    return next((part for name in _DECODERS if (part := getattr(pipe, name, None)) is not None), None)


def channels_of(decoder: Any) -> int | None:
    """How many channels the latents of an autoencoder have."""
    return getattr(decoder.config, "latent_channels", getattr(decoder.config, "z_dim", None))


def is_decoder(part: str) -> bool:
    """Whether a part of a pipeline, by its name, makes pixels of latents."""
    return part in _DECODERS


def size_factor(pipe: Any, size: tuple[int, int]) -> int:
    """What sides have to be multiples of; at most what divides the default size, which the pipeline draws in any case."""
    patch = getattr(getattr(getattr(pipe, "transformer", None), "config", None), "patch_size", 1)
    patch = patch if isinstance(patch, int) else 1
    return math.gcd(scale(pipe) * (max(2, patch) if hasattr(pipe, "_pack_latents") else patch), *size)
