"""The second pass over an image that was drawn small and enlarged (hires fix)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genpipe.images import to_pil
from genpipe.pipeline.decoding import choose_tile, decode
from genpipe.pipeline.loaded import Loaded
from genpipe.pipeline.networks import shown_beside
from genpipe.pipeline.originals import Originals
from genpipe.pipeline.run import Run
from genpipe.pipeline.start import Start, StartState, choose_start, read_depth
from genpipe.prompts.reading import words_of
from genpipe.prompts.syntax import conditions
from genpipe.request import MAX_SIDE, Request
from genpipe.sampling.noise import ImageNoise
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule

# How many times the side that a network was trained at it draws in one piece; beyond it repeats what it draws.
WHOLE = 2
SMALLEST = 32  # latent pixels of a square's side: networks of smaller images see too little of one


def upscaled(
    latents: Tensor, requests: Sequence[Request], model: Loaded, sampler: Sampler, schedule: Schedule, total: int
) -> Iterator[Tensor]:
    """Yield the latents (B, C, H, W) fp32 of the enlarged images after each step of the second pass.

    Args:
        latents: of the finished first pass, (B, C, h, w).
        requests: of the batch.
        model: that draws.
        sampler, schedule: of the second pass.
        total: steps of the first pass; prompts that change stay as they are at its end.
    """
    larger, start = _larger(latents, requests, model, schedule)
    return model.denoise(larger, sampler, schedule, start, total, total, tile_of(requests[0], model))


def begin_upscaled(
    latents: Tensor, request: Request, model: Loaded, sampler: Sampler, schedule: Schedule, total: int
) -> Run:
    """Begin the second pass of one image, (1, C, h, w); see `upscaled`."""
    (larger,), start = _larger(latents, [request], model, schedule)
    return model.begin(larger, sampler, schedule, start, total, total, tile_of(request, model))


def tile_of(request: Request, model: Loaded) -> int | None:
    """Give the side, in latent pixels, of the squares that a second pass is cut into; None where it is not."""
    factor, side = model.checkpoint.vae.config.factor, max(SMALLEST, *model.checkpoint.unet.config.sample_shape)
    across = max(upscaled_size(request, factor)) // factor
    # Neither edges that meet, nor what control networks add, nor what is shown beside the latents is cut into squares.
    whole = across <= WHOLE * side or request.tile or request.control or request.depth
    return None if whole else side


def _larger(
    latents: Tensor, requests: Sequence[Request], model: Loaded, schedule: Schedule
) -> tuple[list[Request], Start]:
    """What the second pass draws, and where it begins."""
    height, width = upscaled_size(requests[0], model.checkpoint.vae.config.factor)
    larger = [_second(request, height, width) for request in requests]
    return larger, _start(latents, larger, requests[0], model, schedule)


def _second(request: Request, height: int, width: int) -> Request:
    """What the second pass draws: without guidance, which AND needs, its parts with commas; at a scale of 0 no prompt at all."""
    scale = request.guidance_scale if request.upscale_guidance_scale is None else request.upscale_guidance_scale
    changes: dict[str, Any] = {"height": height, "width": width, "upscale": 1.0, "vary": 0.0, "guidance_scale": scale}
    if scale == 0:
        changes |= {"prompt": "", "negative_prompt": ""}
    elif (
        scale <= 1 < request.guidance_scale and len(conditions(request.prompt)) > 1 and request.prompt_syntax == "a1111"
    ):
        changes["prompt"] = words_of(request.prompt, seed=request.seed)
    return replace(request, **changes)


def upscaled_size(request: Request, factor: int) -> tuple[int, int]:
    """Give the height and the width in pixels that an image has in the end: the nearest multiples of `factor`.

    Raises:
        ValueError: a side is beyond `MAX_SIDE`.
    """
    height, width = (round(side * request.upscale / factor) * factor for side in (request.height, request.width))
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"upscale {request.upscale:g} gives {width}x{height}: at most {MAX_SIDE} pixels per side")
    return height, width


def _start(latents: Tensor, larger: Sequence[Request], request: Request, model: Loaded, schedule: Schedule) -> Start:
    """Begin from the latents of small images, enlarged as one of their requests says to the size of `larger`."""
    size = (larger[0].height, larger[0].width)
    factor, small = model.vae_config(*size).factor, model.vae_config(request.height, request.width)
    shown = shown_beside(model.checkpoint)
    depth = read_depth(larger, factor, model.device) if shown == "depth" else None
    if request.upscale_by == "latents":
        known = F.interpolate(latents, size=(size[0] // factor, size[1] // factor), mode="bilinear")

        def begin(noise: ImageNoise) -> StartState:
            return StartState(schedule.steps[0].noised(known, noise.first()), extra_channels=depth)

        return begin
    tile = choose_tile(model.spec.vae_tiling, small, latents, model.networks.vae_dtype.itemsize)
    with model.vae(request.height, request.width, tile=request.tile) as vae:
        images = to_pil(decode(vae, latents, tile, model=model.name, joins=request.tile))
    enlarged = tuple(image.resize((size[1], size[0]), Image.Resampling.LANCZOS) for image in images)
    return choose_start(
        Originals.drawn(enlarged),
        schedule,
        lambda: model.vae(*size, tile=request.tile),
        shown=shown,
        depth=depth,
        whole=False,
        device=model.device,
        model=model.name,
    )
