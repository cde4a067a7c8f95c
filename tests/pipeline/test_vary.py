"""Variations of a seed's image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genpipe.dialects.a1111 import parse_parameters
from genpipe.metadata import read_request
from genpipe.pipeline import Pipeline
from genpipe.request import MAX_SEED, Request
from tests.pipeline.drawing import difference, draw
from tests.pipeline.test_start import original


def apart(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean())


def test_a_variation_lies_between_two_seeds_and_grows_with_its_share(pipe: Pipeline) -> None:
    base, other = draw(pipe, seed=5), draw(pipe, seed=9)
    assert difference(draw(pipe, seed=5, vary=0.0), base) == 0
    assert difference(draw(pipe, seed=5, vary=1.0, vary_seed=9), other) == 0
    distances = [apart(draw(pipe, seed=5, vary=share, vary_seed=9), base) for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert distances == sorted(distances) and 0 < distances[0] < distances[-1] / 2


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m"])
def test_several_are_variations_of_one_seed_each_as_drawn_alone(pipe: Pipeline, tmp_path: Path, sampler: str) -> None:
    images = draw(pipe, n=3, seed=MAX_SEED - 1, vary=0.3, sampler=sampler)
    for k, image in enumerate(images):
        image.save(tmp_path / "x.png")
        request = read_request(tmp_path / "x.png")
        wanted = (MAX_SEED + k) % (MAX_SEED + 1)
        assert (request.seed, request.vary, request.vary_seed) == (MAX_SEED - 1, 0.3, wanted)
        assert difference(image, draw(pipe, seed=MAX_SEED - 1, vary=0.3, vary_seed=wanted, sampler=sampler)) <= 1
        settings, _, unread = parse_parameters(image.info["parameters"])
        assert (settings["vary"], settings["vary_seed"], unread) == (0.3, wanted, {})
    assert apart(images[0], images[1]) > 1


def test_variations_of_given_seeds_are_their_own(pipe: Pipeline) -> None:
    settings: Any = {"steps": 2, "vary": 0.2}
    requests = pipe.requests(["a", "a", "b"], seeds=[3, 3, 3], **settings)
    assert [request.vary_seed for request in requests] == [4, 5, 4]
    requests = pipe.requests("a", seeds=[3, 7], n=2, vary_seed=11, **settings)
    assert [(request.seed, request.vary_seed) for request in requests] == [(3, 11), (7, 11)]
    request = Request("a", seed=3, steps=1, guidance_scale=1, height=8, width=8, vary=0.5)
    assert request.variation == (4, 0.5)


def test_an_image_to_begin_from_is_varied_too(pipe: Pipeline) -> None:
    base, near, far = (draw(pipe, image=original(), vary=share) for share in (0.0, 0.1, 0.5))
    assert 0 < apart(base, near) < apart(base, far)


def test_mistakes_are_one_line(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="best_of chooses between seeds, and vary keeps to one"):
        draw(pipe, vary=0.3, best_of=2)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="vary must be a number from 0 to 1"):
            draw(pipe, vary=share)
    with pytest.warns(UserWarning, match="vary_seed has no effect without vary"):
        draw(pipe, vary_seed=3, steps=1)
