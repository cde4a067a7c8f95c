"""`Sampler`: a solver and the noise levels that it walks down."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from genpipe.sampling.schedule import Schedule
from genpipe.sampling.solvers import Denoise, Noise


@dataclass(frozen=True)
class Sampler:
    """A solver and the schedules it walks. Keeps nothing of a run.

    name: canonical, or a diffusers class name where that class itself runs.
    prediction_type: what the network is taken to put out; one of `guidance.PREDICTION_TYPES`.
    train_steps: how many timesteps the network was trained at.
    """

    name: str
    prediction_type: str
    train_steps: int
    make_schedule: Callable[[int], Schedule]
    solver: Callable[[Denoise, Tensor, Schedule, Noise], Iterator[Tensor]]

    def schedule(self, steps: int) -> Schedule:
        """The noise levels of `steps` solver steps.

        Raises ValueError if steps is below 1, or above what the checkpoint was trained (or distilled) at.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= self.train_steps:
            raise ValueError(f"steps must be a whole number from 1 to {self.train_steps}, not {steps!r}")
        return self.make_schedule(steps)

    def sample(self, denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise) -> Iterator[Tensor]:
        """Yield x, (B, C, H, W), `len(schedule.steps) - 1` times; the last is the clean latents. See `solvers`."""
        return self.solver(denoise, x, schedule, noise)
