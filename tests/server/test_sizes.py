"""How many images a server puts through its networks together."""

import itertools
from pathlib import Path

import pytest

from genpipe.pipeline import Pipeline
from genpipe.server.jobs import USUAL
from genpipe.server.sizes import Sizes, first_request
from genpipe.workers.kept_sizes import KeptSizes


@pytest.fixture
def kept(tmp_path: Path) -> KeptSizes:
    return KeptSizes(tmp_path / "sizes.json")


def ticking(pipe: Pipeline, kept: KeptSizes, seconds: float = 0.1) -> Sizes:
    """Sizes by a clock of which every look takes as long: larger batches are as many times as fast."""
    times = itertools.count()
    return Sizes({"tiny": pipe}, kept=kept, clock=lambda: next(times) * seconds)


def test_they_are_measured_once_and_kept(pipe: Pipeline, kept: KeptSizes) -> None:
    sizes = ticking(pipe, kept)
    assert sizes.of("tiny", 8 * 8) == sizes.largest == USUAL
    assert sizes.unknown and sizes.measure(lambda: False) and not sizes.unknown
    assert not sizes.measure(lambda: False)
    assert sizes.of("tiny", 8 * 8) == sizes.largest == 16  # the most on a CPU
    again = ticking(pipe, kept)
    assert again.measure(lambda: True)  # nothing is drawn
    assert again.largest == 16


def test_images_of_other_sizes_fill_the_device_as_much(pipe: Pipeline, kept: KeptSizes) -> None:
    sizes = ticking(pipe, kept)
    sizes.measure(lambda: False)
    assert [sizes.of("tiny", side**2) for side in (4, 16, 64, 1024)] == [64, 4, 1, 1]


def test_the_search_is_given_up_where_there_is_something_to_draw(pipe: Pipeline, kept: KeptSizes) -> None:
    sizes = ticking(pipe, kept)
    looks = iter([False, False, True])
    assert not sizes.measure(lambda: next(looks))
    assert sizes.largest == USUAL
    assert sizes.measure(lambda: False) and sizes.largest == 16


def test_a_number_that_is_given_is_not_measured(pipe: Pipeline, kept: KeptSizes) -> None:
    sizes = Sizes({"tiny": pipe}, most=3, kept=kept)
    assert not sizes.measure(lambda: False)
    assert sizes.of("tiny", 64) == sizes.of("tiny", 10**6) == sizes.largest == 3


def test_what_is_measured_is_of_the_models_usual_form(pipe: Pipeline) -> None:
    request = first_request(pipe)
    assert {name: getattr(request, name) for name in pipe.defaults()} == pipe.defaults()
