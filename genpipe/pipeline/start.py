"""Where denoising begins: pure noise, an image, or an image of which a part is to change."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genpipe.images import from_pil
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.models.vae import VAE
from genpipe.pipeline.originals import Originals
from genpipe.request import Request
from genpipe.sampling.noise import ImageNoise
from genpipe.sampling.sampler import Keep
from genpipe.sampling.schedule import Schedule, Step


@dataclass(frozen=True)
class StartState:
    """What a run begins with.

    Attributes:
        x: (B, C, h, w) fp32, of the schedule's first level.
        keep: what is put back into x after each step; None for nothing.
        extra_channels: (B, C', h, w), what an inpainting U-Net is shown beside x; None for nothing.
    """

    x: Tensor
    keep: Keep | None = None
    extra_channels: Tensor | None = None


def image_noise(requests: Sequence[Request], shape: tuple[int, int, int], device: torch.device) -> ImageNoise:
    """Give the noise of a batch's images, (C, h, w) each."""
    seeds, variations = zip(*((request.seed, request.variation) for request in requests), strict=True)
    return ImageNoise(seeds, shape, device, variations=variations)


# Draws what a run begins with from the images' noise.
Start = Callable[[ImageNoise], StartState]


def choose_start(
    originals: Originals | None,
    schedule: Schedule,
    vae: Callable[[], AbstractContextManager[VAE]],
    *,
    shown: str | None,
    depth: Tensor | None,
    whole: bool,
    device: torch.device,
    model: str,
) -> Start:
    """Begin from noise, or from images (SDEdit, arXiv 2108.01073), and keep what is not to change.

    Random numbers are drawn in diffusers' order: the encoding, the noise, the encoding of what stays.

    Args:
        originals: the batch's images; None begins from noise alone.
        schedule: the part of it that is to run.
        vae: lends the autoencoder.
        shown: what the denoiser takes as extra channels, see `shown_beside`: a "mask" and what stays of the image, the
            "image", or its "depth".
        depth: (B, 1, h, w), maps of depth from -1 to 1, for "depth".
        whole: whether all of the schedule runs, so that with a mask nothing of the image shows in its start.
        device: of the latents.
        model: its name, for errors.

    Raises:
        ValueError: what the denoiser is shown is missing.
        NonFiniteError: the encoding of an image is not finite, in fp32 either.
    """
    if shown == "mask" and (originals is None or originals.masks is None):
        raise ValueError("this checkpoint paints parts of images: give an image and a mask (--image, --mask)")
    if shown == "image" and (originals is None or originals.masks is not None):
        raise ValueError("this checkpoint edits whole images: give an image, without a mask (--image)")
    if shown == "depth" and depth is None:
        raise ValueError("this checkpoint is shown a map of depth: give one, white is near (--depth)")
    if originals is None:
        return lambda noise: StartState(noise.first() * schedule.initial_scale, extra_channels=depth)
    pixels = from_pil(originals.images).to(device)
    hard = None
    if originals.masks is not None:
        levels = np.stack([np.asarray(mask) for mask in originals.masks])
        hard = torch.from_numpy(levels).to(device)[:, None].float() / 255  # (B, 1, H, W)
    with vae() as lent:
        mean, spread = _moments(lent, pixels, model)
        kept = None if hard is None else _moments(lent, pixels * (hard < 0.5), model)
        scale = lent.scale
    if shown == "image":  # InstructPix2Pix (arXiv 2211.09800), which reads latents that are neither drawn nor scaled
        return lambda noise: StartState(noise.first() * schedule.initial_scale, extra_channels=mean)
    small = (
        None if hard is None else F.interpolate(hard, size=mean.shape[-2:])
    )  # (B, 1, h, w): each one's top left pixel

    def begin(noise: ImageNoise) -> StartState:
        known = torch.zeros_like(mean) if whole and shown == "mask" else scale(mean + spread * noise())
        unit = noise.first()
        x = unit * schedule.initial_scale if whole and small is not None else schedule.steps[0].noised(known, unit)
        if small is None or kept is None:
            return StartState(x, extra_channels=depth)
        masked = scale(kept[0] + kept[1] * noise())
        if shown == "mask":
            return StartState(x, extra_channels=torch.cat([small, masked], dim=1))

        return StartState(x, partial(_put_back, known, unit, small), depth)

    return begin


def read_depth(requests: Sequence[Request], factor: int, device: torch.device) -> Tensor | None:
    """Read the requests' maps of depth, (B, 1, h, w) from -1, far, to 1; None where they have none.

    Raises:
        ValueError: a map cannot be used.
        OSError: a file cannot be read.
    """
    maps = []
    for request in requests:
        if request.depth is not None:
            levels = torch.from_numpy(np.asarray(request.depth.open().convert("L"), dtype=np.float32)).to(device)
            size = (request.height // factor, request.width // factor)
            seen = F.interpolate(levels[None, None], size=size, mode="bicubic", align_corners=False)
            low, high = seen.amin(), seen.amax()
            maps.append(2 * (seen - low) / (high - low).clamp(min=1e-6) - 1)
    return torch.cat(maps) if maps else None


def _put_back(known: Tensor, noise: Tensor, mask: Tensor, x: Tensor, step: Step) -> Tensor:
    """Keep x where the mask is 1; elsewhere put the known latents at the noise level of x."""
    return (1 - mask) * step.noised(known, noise) + mask * x


def _moments(vae: VAE, pixels: Tensor, model: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the unscaled latents, each (B, C, h, w) fp32, image by image."""
    found = []
    for one in pixels.split(1):  # an encoding must not depend on what else is in the batch
        mean, logvar = vae.encode(one)
        if not bool(torch.isfinite(mean).all() & torch.isfinite(logvar).all()):
            mean, logvar = float32_copy(vae).encode(one)
            if not bool(torch.isfinite(mean).all() & torch.isfinite(logvar).all()):
                raise NonFiniteError.of("encoder", vae, model)
        found.append((mean.float(), (0.5 * logvar.float()).exp()))
    return torch.cat([mean for mean, _ in found]), torch.cat([spread for _, spread in found])
