"""Where denoising begins: pure noise, an image, or an image of which a part is to change."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from genpipe.images import Picture, from_pil
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.models.vae import VAE
from genpipe.request import Request
from genpipe.sampling.noise import ImageNoise
from genpipe.sampling.sampler import Keep
from genpipe.sampling.schedule import Schedule, Step


@dataclass(frozen=True)
class Begun:
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
Start = Callable[[ImageNoise], Begun]


@dataclass(frozen=True)
class Originals:
    """The images that a batch begins from, at the size of the batch.

    Attributes:
        images: RGB.
        masks: 255 where an image is to change, 0 where it stays; None where all of it is to change.
    """

    images: tuple[Image.Image, ...]
    masks: tuple[Image.Image, ...] | None

    @classmethod
    def of(cls, requests: Sequence[Request]) -> "Originals | None":
        """Read and scale the images of requests; None where they have none.

        Raises:
            ValueError: an image or a mask cannot be used, or only some of the images have parts to change.
            OSError: a file cannot be read.
        """
        pairs = [_read(request) for request in requests if request.image is not None]
        if not pairs:
            return None
        masks = [mask for _, mask in pairs if mask is not None]
        if masks and len(masks) < len(pairs):
            raise ValueError("some images of the batch are transparent or have a mask, others not: draw them apart")
        return cls(tuple(image for image, _ in pairs), tuple(masks) or None)

    def restored(self, drawn: Sequence[Picture], blurs: Sequence[int]) -> list[Picture]:
        """Put the parts that were to stay, byte for byte, over what was drawn in their place.

        Args:
            drawn: the batch's images.
            blurs: of each, over how many pixels inside of the mask the change fades in.
        """
        if self.masks is None:
            return list(drawn)
        parts = zip(drawn, self.images, self.masks, blurs, strict=True)
        return [Picture.of(Image.composite(new, old, _faded(mask, blur))) for new, old, mask, blur in parts]


def _faded(mask: Image.Image, blur: int) -> Image.Image:
    """From nothing at the mask's edge to all within it; outside of it nothing changes."""
    if not blur:
        return mask
    levels = np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    inside = np.clip(2 * levels - 255, 0, 255) * (np.asarray(mask) > 0)
    return Image.fromarray(inside.astype(np.uint8))


def _read(request: Request) -> tuple[Image.Image, Image.Image | None]:
    assert request.image is not None
    size = (request.width, request.height)
    given = request.image.open()
    mask = None
    if request.mask is not None:
        mask = request.mask.open().convert("L")
        if mask.size != given.size:
            raise ValueError(
                f"mask is {mask.width}x{mask.height} where the image is {given.width}x{given.height}: make them one size"
            )
    elif given.mode == "RGBA":
        mask = given.getchannel("A").point(list(range(255, -1, -1)))
    if mask is not None:
        mask = mask.resize(size, Image.Resampling.LANCZOS).point([0] * 128 + [255] * 128)
        if mask.getextrema() == (0, 0):
            raise ValueError("mask leaves nothing to change, it is all black: paint white what is to change")
    return given.convert("RGB").resize(size, Image.Resampling.LANCZOS), mask


def choose_start(
    originals: Originals | None,
    schedule: Schedule,
    vae: Callable[[], AbstractContextManager[VAE]],
    *,
    inpaints: bool,
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
        inpaints: whether the denoiser takes a mask and what stays of the image as extra channels.
        whole: whether all of the schedule runs, so that with a mask nothing of the image shows in its start.
        device: of the latents.
        model: its name, for errors.

    Raises:
        ValueError: the denoiser is shown a mask, and there are no images or no masks.
        NonFiniteError: the encoding of an image is not finite, in fp32 either.
    """
    if inpaints and (originals is None or originals.masks is None):
        raise ValueError("this checkpoint paints parts of images: give an image and a mask (--image, --mask)")
    if originals is None:
        return lambda noise: Begun(noise.first() * schedule.initial_scale)
    pixels = from_pil(originals.images).to(device)
    hard = None
    if originals.masks is not None:
        levels = np.stack([np.asarray(mask) for mask in originals.masks])
        hard = torch.from_numpy(levels).to(device)[:, None].float() / 255  # (B, 1, H, W)
    with vae() as lent:
        mean, spread = _moments(lent, pixels, model)
        kept = None if hard is None else _moments(lent, pixels * (hard < 0.5), model)
        scale = lent.scale
    small = (
        None if hard is None else F.interpolate(hard, size=mean.shape[-2:])
    )  # (B, 1, h, w): each one's top left pixel

    def begin(noise: ImageNoise) -> Begun:
        known = torch.zeros_like(mean) if whole and inpaints else scale(mean + spread * noise())
        unit = noise.first()
        x = unit * schedule.initial_scale if whole and small is not None else schedule.steps[0].noised(known, unit)
        if small is None or kept is None:
            return Begun(x)
        masked = scale(kept[0] + kept[1] * noise())
        if inpaints:
            return Begun(x, extra_channels=torch.cat([small, masked], dim=1))

        return Begun(x, partial(_put_back, known, unit, small))

    return begin


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
