"""The denoising of a batch: guided evaluations of a denoiser under a sampler, in fp32 where 16 bits overflow."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic

import torch
from torch import Tensor

from genpipe.blocks import Network
from genpipe.models.denoiser import Denoiser, MakeDenoiser
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.pipeline.conditions import Conditions
from genpipe.pipeline.start import Start, image_noise
from genpipe.request import SHARED, Request
from genpipe.sampling.guidance import composed, guided, x0_from_output
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule, Step

# Denoisers of prompts that take turns which are kept, with the keys and values of their prompts.
KEPT_TURNS = 4


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
    key = first.batch_key(distilled=distilled)
    for request in requests:
        if request.batch_key(distilled=distilled) == key:
            continue
        if differing := [name for name in SHARED if getattr(request, name) != getattr(first, name)]:
            raise ValueError(f"a batch must agree in {', '.join(SHARED)}: it differs in {', '.join(differing)}")
        if request.inputs_key != first.inputs_key:
            raise ValueError(
                "a batch must agree in whether there is an image to begin from and a mask, and in how many control images "
                "there are and when they act: draw these apart"
            )
        scales = [request.guidance_scale for request in requests]
        raise ValueError(f"a batch must agree in whether it is guided, or be split: it has the scales {scales}")
    return first.guidance_scale > 1 and not distilled


def denoise(
    network: Network,
    make: MakeDenoiser[Network],
    conditions: Conditions,
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
        conditions: what guides the batch: B rows, 2B where negative prompts come first, more where AND joins prompts.
        requests: the batch, agreeing as `is_guided` wants it.
        sampler, schedule: the requests' own.
        start: draws what the run begins with.
        shape: of one image's latents (C, h, w).
        model: its name, for errors.

    Raises:
        NonFiniteError: the latents are not finite in fp32 either.
    """
    first = requests[0]
    rows = len(conditions.conditionings[0]) // len(requests)  # per image
    guides, device = rows > 1, conditions.conditionings[0].context.device
    scales = [request.guidance_scale for request in requests]
    weight = first.guidance_scale
    if len(set(scales)) > 1:
        weight = torch.tensor(scales, dtype=torch.float32, device=device)[:, None, None, None]  # (B, 1, 1, 1)
    timesteps = [step.timestep for step in schedule.steps]

    def evaluate(x: Tensor, step: Step, denoiser: Denoiser) -> Tensor:
        alone = guides and not conditions.leads(step)
        output = denoiser(x, step.timestep, last=alone).float()
        if guides and not alone:
            output = led_away(
                output.chunk(rows), conditions.weights, weight, first.guidance_rescale, conditions.image_scale
            )
        return x0_from_output(output, x, step, sampler.prediction_type)

    noise = image_noise(requests, shape, device)
    begun = start(noise)
    conditions = conditions.showing(begun.extra_channels)

    def made(network: Network) -> Denoiser:
        if len(conditions.conditionings) == 1:
            return make(network, timesteps, conditions.conditionings[0])
        return InTurns(network, make, conditions, timesteps)

    denoiser = made(network)
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
        in_fp32 = made(float32_copy(network)) if in_fp32 is None else in_fp32
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
        noise = image_noise(requests, shape, device)
        begun = start(noise)
    raise NonFiniteError.of("denoiser", network, model)


def led_away(
    outputs: Sequence[Tensor],
    weights: Tensor | None,
    scale: float | Tensor,
    rescale: float = 0.0,
    image_scale: float | None = None,
) -> Tensor:
    """Join what the network makes of each of an image's prompts, (B, C, h, w) each, the negative one's first, by guidance.

    Args:
        weights: (prompts, B), how much each prompt but the negative one counts; None where there is one.
        scale, rescale: see `genpipe.sampling.guidance.guided`.
        image_scale: weight of the image that the network is shown, of which the first output knows nothing (arXiv 2211.09800,
            eq. 3); None where it is shown none.
    """
    if image_scale is not None:
        unseen, unprompted, prompted = outputs
        return guided(unprompted, prompted, scale, rescale) + (image_scale - 1) * (unprompted - unseen)
    unprompted, *prompted = outputs
    led = prompted[0] if weights is None else composed(unprompted, prompted, weights)
    return guided(unprompted, led, scale, rescale)


class InTurns(Generic[Network]):
    """The `Denoiser` of conditionings that take turns over the steps; those used last are kept.

    Args:
        network: prepared.
        make: makes its denoiser.
        conditions: what guides the batch.
        timesteps: of the schedule's steps.
    """

    def __init__(
        self, network: Network, make: MakeDenoiser[Network], conditions: Conditions, timesteps: Sequence[float]
    ) -> None:
        self._network, self._make, self._timesteps = network, make, timesteps
        self._conditionings = conditions.conditionings
        last = len(conditions.turns) - 1
        self._turns = {time: conditions.turns[min(step, last)] for step, time in reversed([*enumerate(timesteps)])}
        self._made: dict[int, Denoiser] = {}

    def at(self, timestep: float) -> Denoiser:
        """Give the denoiser whose turn it is at a timestep."""
        turn = self._turns[timestep]
        denoiser = self._made.pop(turn, None)
        if denoiser is None:
            denoiser = self._make(self._network, self._timesteps, self._conditionings[turn])
        if len(self._made) >= KEPT_TURNS:
            self._made.pop(next(iter(self._made)))
        self._made[turn] = denoiser
        return denoiser

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Tensor:
        """As `Denoiser` says; images at different timesteps have to be at the same turn."""
        (denoiser,) = {self.at(each) for each in ([timestep] if isinstance(timestep, int | float) else timestep)}
        return denoiser(latents, timestep, last=last)
