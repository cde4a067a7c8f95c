"""`Sampler`: a solver, and the schedules that it walks down."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from genpipe.messages import quoted
from genpipe.sampling.schedule import CLEAN, Schedule, Step
from genpipe.sampling.solvers import Evaluation, Noise, Solution

Denoise = Callable[[Tensor, Step], Tensor]
# x and its level to what stands in its place.
Keep = Callable[[Tensor, Step], Tensor]


@dataclass(frozen=True)
class Sampler:
    """A solver, and the schedules that it walks down. Keeps nothing of a run.

    Attributes:
        name: canonical, or a diffusers class name where the checkpoint's own scheduler runs in diffusers.
        prediction_type: what the network is taken to put out; one of `guidance.PREDICTION_TYPES`.
        train_steps: how many timesteps the network was trained at.
        make_schedule: the whole schedule of (steps, image_tokens), see `schedule`.
        solve: the solver, a generator that asks for every evaluation of the network:

            run = sampler.solve(x, schedule, noise)
            asked = next(run)                                   # an `Evaluation`
            asked = run.send((asked.x, denoise(asked.x, asked.step)))   # and so on; StopIteration.value is the last x

            So a server can advance many runs together, one evaluation at a time. `sample` is the same with a callback.
        order: how many of its evaluations make a step, all but the last: 2 for heun.
    """

    name: str
    prediction_type: str
    train_steps: int
    make_schedule: Callable[[int, int | None], Schedule]
    solve: Callable[[Tensor, Schedule, Noise], Solution]
    order: int = 1

    def schedule(
        self,
        steps: int,
        *,
        strength: float = 1.0,
        first: float = 0.0,
        last: float = 1.0,
        image_tokens: int | None = None,
    ) -> Schedule:
        """The noise levels of `steps` solver steps, or the part of them that is asked for.

        A run over a part of them begins with `schedule.steps[0].noised(latents, noise)`, or with the x that the part
        before it ended with; a run over all of them that makes an image from nothing begins with
        `noise * schedule.initial_scale`.

        Args:
            steps: of the whole schedule, 1 … train_steps.
            strength: 0 … 1: the share of the steps, counted from the end, that changes an image. As in diffusers' img2img
                pipelines int(strength * steps) of them are left; of a flow's steps the share is rounded up.
            first, last: 0 … 1: which share of the training timesteps, counted from pure noise, the part begins at and
                ends at. SDXL's base draws to last=0.8 and its refiner from first=0.8 (diffusers' denoising_end and
                denoising_start). No step of two evaluations is divided: it is the refiner's.
            image_tokens: how long a sequence the image is for the network, height / 16 * width / 16 for FLUX and SD 3.
                Only checkpoints that shift their noise levels by the image's size need it.

        Raises:
            ValueError: an argument is out of its range, no step is left, the checkpoint was not trained (or distilled)
                at so many steps, or it needs `image_tokens`.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= self.train_steps:
            raise ValueError(f"steps must be a whole number from 1 to {self.train_steps}, not {quoted(steps, 60)}")
        for name, value in (("strength", strength), ("first", first), ("last", last)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, not {quoted(value, 60)}")
        if strength < 1 and first > 0:
            raise ValueError(f"strength {strength:g} and first {first:g} both say where to begin: give one of them")
        whole = self.make_schedule(steps, image_tokens)
        skipped = self._skipped(steps, strength)
        if skipped == steps:
            least = math.ceil(1000 / steps) / 1000
            raise ValueError(f"strength {strength:g} of {steps} steps is not one whole step: use at least {least:g}")
        start, stop = skipped * self.order, len(whole.evaluated)
        if first > 0:
            start = self._cut(whole, first)
        if last < 1:
            stop = self._cut(whole, last)
        if start >= stop:
            raise ValueError(
                f"no step lies between first {first:g} and last {last:g} of {steps} steps: move them apart, "
                "or take more steps"
            )
        return whole.part(start, stop) if (start, stop) != (0, len(whole.evaluated)) else whole

    def _skipped(self, steps: int, strength: float) -> int:
        if self.prediction_type == "flow":  # SD 3's and FLUX's pipelines round the other way
            return int(max(steps - min(steps * strength, steps), 0))
        return max(steps - min(int(steps * strength), steps), 0)

    def _cut(self, whole: Schedule, share: float) -> int:
        """How many of the evaluations come before this share of the training timesteps is over."""
        lowest = round(self.train_steps - share * self.train_steps)
        count = sum(whole.steps[index].timestep >= lowest for index in whole.evaluated)
        return count - count % self.order if count < len(whole.evaluated) else count

    def walk(self, x: Tensor, schedule: Schedule, noise: Noise, *, keep: Keep | None = None) -> Solution:
        """Walk down a schedule as `solve` does, with `keep`: whoever advances it evaluates the network; see `sample`."""
        run = self.solve(x, schedule, noise)
        asked: Evaluation | Tensor = next(run)
        begun = False
        while isinstance(asked, Evaluation):
            x = asked.x if keep is None or not begun else keep(asked.x, asked.step)
            begun = True
            asked = answer(run, (yield asked._replace(x=x)))
        return asked if keep is None else keep(asked, schedule.steps[-1] if schedule.after else CLEAN)

    def sample(
        self, denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise, *, keep: Keep | None = None
    ) -> Iterator[Tensor]:
        """Walk down a schedule, yielding x (B, C, H, W) after every step; the last x is that of `schedule.steps[-1]`.

        Args:
            denoise: (x, step) to the clean latents x0 that the network makes of x.
            x: of the first step, float32 whatever the network runs in.
            schedule: made by `schedule`.
            noise: where solvers that draw noise draw from.
            keep: (x, step) to the x that goes on in its place, called before each evaluation but the first, and at the
                end. Inpainting puts the known part of an image back here:
                `lambda x, step: torch.where(mask, x, step.noised(known, noise))`.
        """
        run = self.walk(x, schedule, noise, keep=keep)
        asked: Evaluation | Tensor = next(run)
        done = 0
        while isinstance(asked, Evaluation):
            if asked.done > done:
                done = asked.done
                yield asked.x
            asked = answer(run, (asked.x, denoise(asked.x, asked.step)))
        yield asked


def answer(run: Solution, evaluated: tuple[Tensor, Tensor]) -> Evaluation | Tensor:
    """Send a run the x that was evaluated and its x0; give what it asks for next, or the x that it ends with."""
    try:
        return run.send(evaluated)
    except StopIteration as end:
        return end.value
