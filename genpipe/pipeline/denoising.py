"""The denoising of a batch: guided evaluations of the U-Net under a sampler, in fp32 where 16 bits overflow."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genpipe.hardware import float32_copy
from genpipe.models.finite import NonFiniteError
from genpipe.models.prepare import Denoiser
from genpipe.models.unet import UNet
from genpipe.request import Request
from genpipe.sampling.guidance import guided, x0_from_output
from genpipe.sampling.noise import ImageNoise
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule, Step
from genpipe.sampling.speed import SPEEDS


def is_guided(requests: Sequence[Request], unet: UNet) -> bool:
    """Whether a batch takes a second, unprompted half: distilled networks do not, they have the scale as an input.

    Raises:
        ValueError: there are no requests, or they do not agree in what a batch must.
    """
    if not requests:
        raise ValueError("a batch of [] has nothing to draw: give at least one request")
    first = requests[0]
    same = ("height", "width", "steps", "sampler", "guidance_rescale", "clip_skip", "speed")
    for key in same:
        if any(getattr(request, key) != getattr(first, key) for request in requests):
            raise ValueError(f"a batch must agree in {', '.join(same)}: it differs in {key}")
    distilled = unet.config.guidance_channels is not None
    scales = [request.guidance_scale for request in requests]
    if (distilled and len(set(scales)) > 1) or len({scale > 1 for scale in scales}) > 1:
        raise ValueError(f"a batch must agree in whether it is guided, or be split: it has the scales {scales}")
    return first.guidance_scale > 1 and not distilled


def denoise(
    unet: UNet,
    context: Tensor,
    requests: Sequence[Request],
    *,
    sampler: Sampler,
    schedule: Schedule,
    shape: tuple[int, int, int],
    model: str,
) -> Iterator[Tensor]:
    """The latents (B, C, h, w) fp32 of a batch after each step, still noisy until the last.

    Whether they are finite is looked at once, at the end; where they are not, the steps come again from the first, with
    what overflows repeated in fp32.

    Args:
        unet: prepared.
        context: of the negative prompts, then of the prompts (2B, T, D) where the batch is guided; else (B, T, D).
        requests: the batch, agreeing as `is_guided` wants it.
        sampler, schedule: the requests' own.
        shape: of one picture's latents (C, h, w).
        model: its name, for what is said when it fails.

    Raises:
        NonFiniteError: the latents are not finite in fp32 either.
    """
    first, speed = requests[0], SPEEDS[requests[0].speed]
    guides = len(context) > len(requests)
    scales = [request.guidance_scale for request in requests]
    weight = first.guidance_scale
    if len(set(scales)) > 1:
        weight = torch.tensor(scales, device=context.device)[:, None, None, None]  # (B, 1, 1, 1)
    distilled = first.guidance_scale if unet.config.guidance_channels is not None else None

    def denoiser_of(unet: UNet) -> Denoiser:
        times = [step.timestep for step in schedule.steps]
        return Denoiser(unet, times, context, guidance=distilled, refresh=speed.refresh)

    def evaluate(x: Tensor, step: Step, denoiser: Denoiser) -> Tensor:
        alone = guides and not speed.guides(step.ratio)
        output = denoiser(x, step.timestep, last=alone).float()
        if guides and not alone:
            unprompted, prompted = output.chunk(2)
            output = guided(unprompted, prompted, weight, first.guidance_rescale)
        return x0_from_output(output, x, step, sampler.prediction_type)

    denoiser = denoiser_of(unet)
    in_fp32: Denoiser | None = None

    def quick(x: Tensor, step: Step) -> Tensor:
        return evaluate(x, step, denoiser)

    def careful(x: Tensor, step: Step) -> Tensor:
        """Repeated in fp32 for the pictures that are left non-finite."""
        nonlocal in_fp32
        x0 = quick(x, step)
        finite = x0.isfinite().all(dim=(1, 2, 3))
        if finite.all():
            return x0
        in_fp32 = denoiser_of(float32_copy(unet)) if in_fp32 is None else in_fp32
        repeated = evaluate(x, step, in_fp32)
        if not repeated.isfinite().all():
            raise NonFiniteError.of("denoiser", unet, model)
        return torch.where(finite[:, None, None, None], x0, repeated)

    attempts: tuple[Callable[[Tensor, Step], Tensor], ...] = (quick, careful)
    for attempt in attempts:
        noise = ImageNoise([request.seed for request in requests], shape, context.device)
        latents = noise() * schedule.initial_scale
        for stepped in sampler.sample(attempt, latents, schedule, noise):
            yield (latents := stepped)
        if latents.isfinite().all():
            return
    raise NonFiniteError.of("denoiser", unet, model)
