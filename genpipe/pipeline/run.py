"""Images that are each at a step of their own, drawn together: a server's batch, which they join and leave at any step."""

from collections.abc import Callable, Hashable, Sequence
from typing import cast

import torch
from torch import Tensor

from genpipe.blocks import Network
from genpipe.models.denoiser import JoinedDenoiser, MakeDenoiser, TiledDenoiser, UNetDenoiser
from genpipe.models.tiles import over_tiles
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
        network: prepared.
        make: makes its denoiser, a `UNetDenoiser`, or a `TiledDenoiser` of one.
        conditions: what guides the image.
        request: what is drawn.
        sampler, schedule: the request's own.
        start: draws what the run begins with.
        shape: of the latents (C, h, w).
        before: steps that were taken before.

    Attributes:
        request: what is drawn.
        step: how many steps are done, those before among them.
        steps: how many it takes, those of the runs that follow among them.
        latents: (1, C, h, w) fp32, after the last step that was done; still noisy until all are. They are not checked for
            numbers that are not finite.
        then: makes, of the latents of a run that is done, the run that goes on with them; None where the image is done.
    """

    @torch.inference_mode()
    def __init__(
        self,
        network: Network,
        make: MakeDenoiser[Network],
        conditions: Conditions,
        request: Request,
        *,
        sampler: Sampler,
        schedule: Schedule,
        start: Start,
        shape: tuple[int, int, int],
        before: int = 0,
    ) -> None:
        self.request, self.step, self._before = request, before, before
        self.steps = self._last = before + len(schedule.steps) - 1
        self.then: Callable[[Tensor], Run] | None = None
        self._prediction_type, self._weights = sampler.prediction_type, conditions.weights
        self._image_scale, self._leads_at = conditions.image_scale, conditions.leads
        noise = image_noise([request], shape, conditions.conditionings[0].context.device)
        begun = start(noise)
        conditions = conditions.showing(begun.extra_channels)
        timesteps = [step.timestep for step in schedule.steps]
        self._denoisers = InTurns(network, make, conditions, timesteps)
        self._prompts = len(conditions.conditionings[0])
        self._walk = sampler.walk(begun.x, schedule, noise, keep=begun.keep)
        self._asked: Evaluation | None = next(self._walk)
        self.latents = begun.x

    @property
    def done(self) -> bool:
        """Whether all of its own steps are done."""
        return self._asked is None

    @property
    def asked(self) -> Evaluation:
        """What it wants to be evaluated next."""
        assert self._asked is not None
        return self._asked

    @property
    def denoiser(self) -> UNetDenoiser:
        """What would evaluate it alone, or, where it is cut into squares, one of these."""
        made = self._denoisers.at(self.asked.step.timestep)
        return cast(UNetDenoiser, made.of_squares if isinstance(made, TiledDenoiser) else made)

    @property
    def tile(self) -> int | None:
        """The side in latent pixels of the squares that it is cut into; None where it is evaluated whole."""
        made = self._denoisers.at(self.asked.step.timestep)
        return made.tile if isinstance(made, TiledDenoiser) else None

    @property
    def form(self) -> Hashable:
        """What runs have to agree in at their next evaluation to be evaluated together."""
        own = self.denoiser.form(self.asked.step.timestep, last=self.alone)
        return own, self.tile, tuple(self.latents.shape)

    @property
    def alone(self) -> bool:
        """Whether its prompt is evaluated next without the negative one, since guidance does not apply there."""
        return self._prompts > 1 and not self._leads_at(self.asked.step)

    @property
    def _leads(self) -> Hashable:
        """What runs of one form have to agree in for guidance to be computed of all of them at once."""
        return self._weights is None, self._image_scale, self.request.guidance_rescale

    @staticmethod
    def x0_of(runs: "Sequence[Run]", x: Tensor, outputs: Tensor) -> list[Tensor]:
        """Give the clean latents (1, C, h, w) of each run, by guidance.

        What runs agree in is computed of all of them at once: small calls add up.

        Args:
            x: (B, C, h, w), what was evaluated.
            outputs: (k · B, C, h, w), what the network made of it.
        """
        first, count = runs[0], len(runs)
        if count > 1 and any(run._leads != first._leads or run._weights is not None for run in runs):
            return [x0 for k, run in enumerate(runs) for x0 in Run.x0_of([run], x[k : k + 1], outputs[k::count])]
        output, steps = outputs, [run.asked.step for run in runs]
        if len(outputs) > count:
            scales = [run.request.guidance_scale for run in runs]
            scale = scales[0]
            if len(set(scales)) > 1:
                scale = torch.tensor(scales, dtype=torch.float32, device=outputs.device)[:, None, None, None]
            rescale = first.request.guidance_rescale
            output = led_away(outputs.split(count), first._weights, scale, rescale, first._image_scale)
        if len({(step.alpha, step.sigma, run._prediction_type) for step, run in zip(steps, runs, strict=True)}) > 1:
            return [
                x0_from_output(output[k : k + 1], x[k : k + 1], steps[k], run._prediction_type)
                for k, run in enumerate(runs)
            ]
        return list(x0_from_output(output, x, steps[0], first._prediction_type).split(1))

    def take(self, x0: Tensor) -> None:
        """Go on to the next evaluation with the clean latents (1, C, h, w) that came of the last."""
        asked = answer(self._walk, (self.asked.x, x0))
        if isinstance(asked, Tensor):
            self._asked, self.step, self.latents = None, self._last, asked
            return
        if self._before + asked.done > self.step:
            self.step, self.latents = self._before + asked.done, asked.x
        self._asked = asked


# Groups of runs that take turns whose parts stay joined.
KEPT_JOINED = 4


class Together:
    """Evaluates the network for runs of one form; what is computed of who they are is kept, of the last few groups of runs."""

    def __init__(self) -> None:
        self._joined: dict[tuple[tuple[UNetDenoiser, bool], ...], JoinedDenoiser] = {}  # the one used last at the end

    @torch.inference_mode()
    def __call__(self, runs: Sequence[Run]) -> None:
        """Evaluate the network once, and take every run one evaluation further."""
        parts = tuple((run.denoiser, run.alone) for run in runs)
        joined = self._joined.pop(parts, None) or JoinedDenoiser(parts)
        self._joined[parts] = joined
        if len(self._joined) > KEPT_JOINED:
            del self._joined[next(iter(self._joined))]
        x = torch.cat([run.asked.x for run in runs])
        timesteps, tile = [run.asked.step.timestep for run in runs], runs[0].tile
        if tile is None:
            outputs = joined(x, timesteps).float()
        else:
            outputs = over_tiles(lambda squares: joined(squares, timesteps), x, tile=tile, factor=1)
        for run, x0 in zip(runs, Run.x0_of(runs, x, outputs), strict=True):
            run.take(x0)
