"""Noise of images, and noise turned toward other noise."""

import math

import pytest
import torch

from genpipe.sampling.noise import ImageNoise, turned

SHAPE = (4, 8, 6)


def drawn(seed: int, *, skip: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(skip + 1)][-1]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_columns_are_turned_along_the_sphere(share: float) -> None:
    # Formula for formula, a column of a channel at a time, in double precision.
    one, other = drawn(1), drawn(2)
    found = turned(one, other, share)
    for channel in range(SHAPE[0]):
        for column in range(SHAPE[2]):
            a, b = (noise[channel, :, column].double() for noise in (one, other))
            angle = math.acos(float(a @ b / a.norm() / b.norm()))
            expected = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
            assert torch.allclose(found[channel, :, column].double(), expected, atol=1e-5)


def test_the_ends_are_the_noises_themselves_and_the_way_between_keeps_their_strength() -> None:
    one, other = drawn(1), drawn(2)
    assert torch.equal(turned(one, other, 0.0), one) and torch.equal(turned(one, other, 1.0), other)
    assert torch.allclose(turned(one, one.clone(), 0.3), one, atol=1e-6)
    wide = [torch.randn(4, 64, 64, generator=torch.Generator("cpu").manual_seed(seed)) for seed in (1, 2)]
    for share in (0.25, 0.5, 0.75):
        assert abs(float(turned(wide[0], wide[1], share).std()) - 1) < 0.02
    away = [float((turned(wide[0], wide[1], share / 10) - wide[0]).norm()) for share in range(11)]
    assert away == sorted(away)


def test_only_what_an_image_begins_with_is_turned() -> None:
    noise = ImageNoise([5, 6], SHAPE, torch.device("cpu"), variations=[(9, 0.4), None])
    encoding, first, step = noise(), noise.first(), noise()
    for row, seed in enumerate((5, 6)):
        assert torch.equal(encoding[row], drawn(seed)) and torch.equal(step[row], drawn(seed, skip=2))
    assert torch.equal(first[0], turned(drawn(5, skip=1), drawn(9, skip=1), 0.4))
    assert torch.equal(first[1], drawn(6, skip=1))
