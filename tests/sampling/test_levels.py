import math
from itertools import pairwise

import numpy as np
import pytest

from genpipe.sampling.levels import (
    consistency_timesteps,
    cumulative_alphas,
    exponential_sigmas,
    flow_sigmas,
    karras_sigmas,
    shifted_flow_sigmas,
    sigma_table,
    spaced_timesteps,
    timesteps_of_sigmas,
)


def _stable_diffusion(zero_terminal_snr: bool = False) -> list[float]:
    return cumulative_alphas("scaled_linear", 0.00085, 0.012, 1000, zero_terminal_snr=zero_terminal_snr)


def test_alphas_are_the_running_product_of_one_less_beta() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(_stable_diffusion(), np.cumprod(1 - betas), rtol=1e-4)
    np.testing.assert_allclose(
        cumulative_alphas("linear", 1e-4, 0.02, 1000), np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-4
    )
    given = [0.1, 0.2, 0.5]
    np.testing.assert_allclose(cumulative_alphas("linear", 0, 0, 3, trained_betas=given), [0.9, 0.72, 0.36], rtol=1e-6)


def test_cosine_betas_follow_the_cosine() -> None:
    squares = cumulative_alphas("squaredcos_cap_v2", 0, 0, 1000)

    def cosine(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [cosine((i + 1) / 1000) / cosine(0) for i in range(990)]
    np.testing.assert_allclose(squares[:990], expected, rtol=1e-4)


def test_zero_terminal_snr_moves_the_last_alpha_to_zero_and_keeps_the_first() -> None:
    plain, rescaled = _stable_diffusion(), _stable_diffusion(zero_terminal_snr=True)
    assert rescaled[-1] == 0 and plain[-1] > 0
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-6)
    roots = np.sqrt(plain)
    expected = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    np.testing.assert_allclose(np.sqrt(rescaled), expected, atol=1e-5)


def test_bad_beta_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown beta_schedule 'sigmoid': choose linear"):
        cumulative_alphas("sigmoid", 0.1, 0.2, 10)
    with pytest.raises(ValueError, match="trained_betas holds 2 values for 10 training timesteps"):
        cumulative_alphas("linear", 0.1, 0.2, 10, trained_betas=[0.1, 0.2])


def test_spacings_are_those_of_the_paper() -> None:
    """arXiv 2305.08891, table 2: ten of a thousand steps, counted there from 1."""
    assert spaced_timesteps("leading", 10, 1000, offset=1) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert spaced_timesteps("linspace", 10, 1000) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spaced_timesteps("trailing", 10, 1000) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert spaced_timesteps("linspace", 3, 1000, rounded=False) == [999, 499.5, 0]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_step_count_gives_that_many_falling_timesteps(spacing: str) -> None:
    """61 among them, of which diffusers' trailing spacing makes 62, the last of them -1."""
    for steps in range(1, 1000):
        times = spaced_timesteps(spacing, steps, 1000)
        assert len(times) == steps
        assert all(high > low for high, low in pairwise(times))
        assert 0 <= times[-1] <= times[0] <= 999


def test_leading_steps_that_run_past_the_last_timestep_are_refused() -> None:
    assert spaced_timesteps("leading", 999, 1000, offset=1)[0] == 999
    with pytest.raises(ValueError, match=r"steps 1000 leave no room .* use at most 999"):
        spaced_timesteps("leading", 1000, 1000, offset=1)
    with pytest.raises(ValueError, match="unknown timestep_spacing 'log'"):
        spaced_timesteps("log", 10, 1000)


def test_consistency_timesteps_are_among_those_distilled() -> None:
    assert consistency_timesteps(4, 1000, 50) == [999, 759, 499, 259]
    assert consistency_timesteps(50, 1000, 50) == [float(20 * i - 1) for i in range(50, 0, -1)]
    with pytest.raises(ValueError, match="steps 51 is more than the 50"):
        consistency_timesteps(51, 1000, 50)


def test_karras_and_exponential_sigmas_are_even_in_their_own_measure() -> None:
    karras, exponential = karras_sigmas(14.6, 0.03, 12), exponential_sigmas(14.6, 0.03, 12)
    for sigmas, measure in ((np.array(karras) ** (1 / 7), "karras"), (np.log(exponential), "exponential")):
        np.testing.assert_allclose(np.diff(sigmas), np.diff(sigmas)[0], err_msg=measure)
    for sigmas in (karras, exponential):
        assert sigmas[0] == pytest.approx(14.6) and sigmas[-1] == pytest.approx(0.03)
    assert karras_sigmas(14.6, 0.03, 1) == pytest.approx([14.6])


def test_timesteps_of_sigmas_inverts_the_table() -> None:
    table = sigma_table(_stable_diffusion())
    np.testing.assert_allclose(
        timesteps_of_sigmas(table[[0, 5, 500, 999]].tolist(), table), [0, 5, 500, 999], atol=1e-3
    )
    between = math.sqrt(float(table[700]) * float(table[701]))
    assert timesteps_of_sigmas([between], table)[0] == pytest.approx(700.5, abs=1e-3)
    assert timesteps_of_sigmas([1e-9, 1e9], table) == [0, 999]


def test_flow_sigmas_start_at_one_and_shift_towards_the_noise() -> None:
    plain, shifted = flow_sigmas(5, 1000, 1.0), flow_sigmas(5, 1000, 3.0)
    assert plain[0] == shifted[0] == 1
    np.testing.assert_allclose(plain, np.linspace(1, 0.001, 5), rtol=1e-6)
    assert all(s > p for s, p in zip(shifted[1:], plain[1:], strict=True))


def test_the_shift_by_size_moves_flow_sigmas_towards_the_noise_and_keeps_their_ends() -> None:
    plain, shifted, linear = (shifted_flow_sigmas(4, mu, linear=mu == 1) for mu in (0.0, 1.15, 1))
    np.testing.assert_allclose(plain, [1, 0.75, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(linear, plain, rtol=1e-6)  # a factor of 1
    assert shifted[0] == 1 and all(s > p for s, p in zip(shifted[1:], plain[1:], strict=True))
