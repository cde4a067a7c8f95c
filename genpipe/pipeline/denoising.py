"""The denoising of a batch: guided evaluations of a denoiser under a sampler, in fp32 where 16 bits overflow."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genpipe.blocks import Network
from genpipe.models.conditioning import Conditioning
from genpipe.models.denoiser import Denoiser, MakeDenoiser
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.pipeline.start import Start
from genpipe.request import SHARED, Request
from genpipe.sampling.guidance import guided, x0_from_output
from genpipe.sampling.noise import ImageNoise
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule, Step
from genpipe.sampling.speed import SPEEDS


def is_guided(requests: Sequence[Request], *, distilled: bool) -> bool:
    """Whether each image of a batch is also evaluated with its negative prompt (classifier-free guidance).

    Args:
        requests: the batch.
        distilled: the network takes the guidance scale as an input, so that one evaluation does.

    Raises:
        ValueError: there are no requests, or they do not agree in what a batch must.
    """
    if not requests:
        raise ValueError("a batch of [] has nothing to draw: give at least one request")
    first = requests[0]
    for request in requests:
        if request.batch_key(distilled=distilled) == first.batch_key(distilled=distilled):
            continue
        if differing := [name for name in SHARED if getattr(request, name) != getattr(first, name)]:
            raise ValueError(f"a batch must agree in {', '.join(SHARED)}: it differs in {', '.join(differing)}")
        scales = [request.guidance_scale for request in requests]
        raise ValueError(f"a batch must agree in whether it is guided, or be split: it has the scales {scales}")
    return first.guidance_scale > 1 and not distilled


def denoise(
    network: Network,
    make: MakeDenoiser[Network],
    conditioning: Conditioning,
    requests: Sequence[Request],
    *,
    sampler: Sampler,
    schedule: Schedule,
    start: Start,
    shape: tuple[int, int, int],
    model: str,
) -> Iterator[Tensor]:
    """Yield the latents (B, C, h, w) fp32 of a batch after each step, still noisy until the last.

    The last latents are checked once. If they are not finite, all steps run again, and each evaluation that is not finite
    is repeated in fp32.

    Args:
        network: prepared.
        make: makes its denoiser, for example `UNetDenoiser`.
        conditioning: of the negative prompts, then of the prompts (2B rows) where the batch is guided; else B rows.
        requests: the batch, agreeing as `is_guided` wants it.
        sampler, schedule: the requests' own.
        start: draws what the run begins with.
        shape: of one image's latents (C, h, w).
        model: its name, for errors.

    Raises:
        NonFiniteError: the latents are not finite in fp32 either.
    """
    first, speed = requests[0], SPEEDS[requests[0].speed]
    guides = len(conditioning) > len(requests)
    device = conditioning.context.device
    scales = [request.guidance_scale for request in requests]
    weight = first.guidance_scale
    if len(set(scales)) > 1:
        weight = torch.tensor(scales, dtype=torch.float32, device=device)[:, None, None, None]  # (B, 1, 1, 1)
    timesteps = [step.timestep for step in schedule.steps]

    def evaluate(x: Tensor, step: Step, denoiser: Denoiser) -> Tensor:
        alone = guides and not speed.guides(step.ratio)
        output = denoiser(x, step.timestep, last=alone).float()
        if guides and not alone:
            unprompted, prompted = output.chunk(2)
            output = guided(unprompted, prompted, weight, first.guidance_rescale)
        return x0_from_output(output, x, step, sampler.prediction_type)

    noise = ImageNoise([request.seed for request in requests], shape, device)
    begun = start(noise)
    if begun.extra_channels is not None:
        extra = torch.cat([begun.extra_channels] * (len(conditioning) // len(requests)))
        conditioning = replace(conditioning, extra_channels=extra)
    denoiser = make(network, timesteps, conditioning)
    in_fp32: Denoiser | None = None

    def as_loaded(x: Tensor, step: Step) -> Tensor:
        return evaluate(x, step, denoiser)

    def repaired(x: Tensor, step: Step) -> Tensor:
        """Evaluate as loaded, and again in fp32 for the images whose result is not finite."""
        nonlocal in_fp32
        x0 = as_loaded(x, step)
        finite = x0.isfinite().all(dim=(1, 2, 3))
        if finite.all():
            return x0
        in_fp32 = make(float32_copy(network), timesteps, conditioning) if in_fp32 is None else in_fp32
        repeated = evaluate(x, step, in_fp32)
        if not repeated.isfinite().all():
            raise NonFiniteError.of("denoiser", network, model)
        return torch.where(finite[:, None, None, None], x0, repeated)

    attempts: tuple[Callable[[Tensor, Step], Tensor], ...] = (as_loaded, repaired)
    for attempt in attempts:
        latents = begun.x
        for stepped in sampler.sample(attempt, latents, schedule, noise, keep=begun.keep):
            yield (latents := stepped)
        if latents.isfinite().all():
            return
        noise = ImageNoise([request.seed for request in requests], shape, device)
        begun = start(noise)
    raise NonFiniteError.of("denoiser", network, model)
