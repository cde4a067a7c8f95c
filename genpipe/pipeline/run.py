"""Images that are each at a step of their own, drawn together: a server's batch, which they join and leave at any step."""

from collections.abc import Hashable, Sequence
from typing import cast

import torch
from torch import Tensor

from genpipe.models.denoiser import JoinedDenoiser, MakeDenoiser, UNetDenoiser
from genpipe.models.unet import UNet
from genpipe.pipeline.conditions import Conditions
from genpipe.pipeline.denoising import InTurns, led_away
from genpipe.pipeline.start import Start, image_noise
from genpipe.request import Request
from genpipe.sampling.guidance import x0_from_output
from genpipe.sampling.sampler import Sampler, answer
from genpipe.sampling.schedule import Schedule
from genpipe.sampling.solvers import Evaluation


class Run:
    """One image that is being drawn. It asks for one evaluation of the network after the other; `Together` makes them.

    Args:
        unet: prepared.
        make: makes its denoiser, for the images of `exact` speed.
        conditions: what guides the image.
        request: what is drawn.
        sampler, schedule: the request's own.
        start: draws what the run begins with.
        shape: of the latents (C, h, w).

    Attributes:
        request: what is drawn.
        steps: how many solver steps it takes.
        step: how many of them are done.
        latents: (1, C, h, w) fp32, after the last step that was done; still noisy until all are. They are not checked for
            numbers that are not finite.
    """

    @torch.inference_mode()
    def __init__(
        self,
        unet: UNet,
        make: MakeDenoiser[UNet],
        conditions: Conditions,
        request: Request,
        *,
        sampler: Sampler,
        schedule: Schedule,
        start: Start,
        shape: tuple[int, int, int],
    ) -> None:
        self.request, self.steps, self.step = request, len(schedule.steps) - 1, 0
        self._unet, self._prediction_type, self._weights = unet, sampler.prediction_type, conditions.weights
        self._image_scale = conditions.image_scale
        noise = image_noise([request], shape, conditions.conditionings[0].context.device)
        begun = start(noise)
        conditions = conditions.showing(begun.extra_channels)
        timesteps = [step.timestep for step in schedule.steps]
        self._denoisers = InTurns(unet, make, conditions, timesteps)
        self._prompts = len(conditions.conditionings[0])
        self._walk = sampler.walk(begun.x, schedule, noise, keep=begun.keep)
        self._asked: Evaluation | None = next(self._walk)
        self.latents = begun.x

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self._asked is None

    @property
    def asked(self) -> Evaluation:
        """What it wants to be evaluated next."""
        assert self._asked is not None
        return self._asked

    @property
    def denoiser(self) -> UNetDenoiser:
        """What would evaluate it alone."""
        return cast(UNetDenoiser, self._denoisers.at(self.asked.step.timestep))

    @property
    def form(self) -> Hashable:
        """What runs have to agree in at their next evaluation to be evaluated together."""
        return id(self._unet), self._prompts, self.denoiser.tokens, tuple(self.latents.shape)

    def take(self, outputs: Sequence[Tensor]) -> None:
        """Go on to the next evaluation with what the network made of each prompt, (1, C, h, w) each."""
        x, step, _ = self.asked
        output = outputs[0]
        if len(outputs) > 1:
            request = self.request
            output = led_away(
                outputs, self._weights, request.guidance_scale, request.guidance_rescale, self._image_scale
            )
        asked = answer(self._walk, (x, x0_from_output(output, x, step, self._prediction_type)))
        if isinstance(asked, Tensor):
            self._asked, self.step, self.latents = None, self.steps, asked
            return
        if asked.done > self.step:
            self.step, self.latents = asked.done, asked.x
        self._asked = asked


class Together:
    """Evaluates the network for runs of one form; what is computed of who they are is kept while they stay the same."""

    def __init__(self) -> None:
        self._parts: list[UNetDenoiser] = []
        self._joined: JoinedDenoiser | None = None

    @torch.inference_mode()
    def __call__(self, runs: Sequence[Run]) -> None:
        """Evaluate the network once, and take every run one evaluation further."""
        parts = [run.denoiser for run in runs]
        if self._joined is None or [*map(id, parts)] != [*map(id, self._parts)]:
            self._parts, self._joined = parts, JoinedDenoiser(parts)
        x = torch.cat([run.asked.x for run in runs])
        outputs = self._joined(x, [run.asked.step.timestep for run in runs]).float()
        for index, run in enumerate(runs):
            run.take([prompt[index : index + 1] for prompt in outputs.split(len(runs))])
