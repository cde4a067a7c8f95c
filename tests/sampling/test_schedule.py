import pytest
import torch

from genpipe.sampling.levels import cumulative_alphas, spaced_timesteps
from genpipe.sampling.schedule import CLEAN, Schedule, Step, discrete_schedule, sigma_schedule


def _stable_diffusion(zero_terminal_snr: bool = False) -> list[float]:
    return cumulative_alphas("scaled_linear", 0.00085, 0.012, 1000, zero_terminal_snr=zero_terminal_snr)


def test_ddim_counts_back_a_fixed_number_of_timesteps() -> None:
    squares = _stable_diffusion()
    schedule = discrete_schedule(squares, [999.0, 666.0, 332.0], end_at_one=True)
    assert [(a.timestep, b.timestep) for a, b in schedule.moves] == [(999, 666), (666, 333), (332, -1)]
    assert schedule.steps[-1] == Step(-1.0, 1.0, 0.0)
    kept = discrete_schedule(squares, [999.0, 666.0, 332.0], end_at_one=False).steps[-1]
    assert (kept.alpha, kept.sigma) == (squares[0] ** 0.5, (1 - squares[0]) ** 0.5)


def test_the_first_x_has_the_variance_that_its_level_has() -> None:
    """Of noise alone where the schedule starts at the top; of noise and a unit image where it starts lower."""
    squares = _stable_diffusion()
    top, lower = spaced_timesteps("linspace", 10, 1000), spaced_timesteps("leading", 10, 1000)
    assert sigma_schedule(squares, top).initial_scale == pytest.approx((1 - squares[999]) ** 0.5, rel=1e-6)
    assert sigma_schedule(squares, lower, unit_start=True).initial_scale == 1


def test_schedules_hold_python_floats_and_variance_preserving_levels() -> None:
    for respacing in (None, "karras", "exponential"):
        schedule = sigma_schedule(_stable_diffusion(), spaced_timesteps("linspace", 8, 1000), respacing=respacing)
        for step in schedule.steps:
            assert all(type(value) is float for value in (step.timestep, step.alpha, step.sigma))
            assert step.alpha**2 + step.sigma**2 == pytest.approx(1)


def test_a_part_keeps_its_place_in_the_whole() -> None:
    levels = tuple(Step(float(t), 0.5, 0.5) for t in range(10, -1, -1))
    whole = Schedule(levels)
    middle = whole.part(3, 7)
    assert middle.steps == levels[3:8] and (middle.before, middle.after, middle.whole) == (3, 3, 10)
    assert middle.part(1, 4) == whole.part(4, 7)
    pairs = Schedule(levels, evaluations=(0, *(i for i in range(1, 10) for _ in range(2))))
    later = pairs.part(6, 19)
    assert later.steps == levels[3:] and later.evaluated == (0, *(i for i in range(1, 7) for _ in range(2)))
    assert pairs.part(0, 6).steps == levels[:4]


def test_an_image_is_noised_to_the_level_that_it_starts_at() -> None:
    image, noise = torch.tensor([2.0]), torch.tensor([-1.0])
    assert Step(500.0, 0.6, 0.8).noised(image, noise).item() == pytest.approx(0.4)
    assert torch.equal(CLEAN.noised(image, noise), image)
