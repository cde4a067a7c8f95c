"""--vary and --upscale, also of an image's file."""

import numpy as np
import pytest

from genpipe.metadata import read_request
from genpipe.pipeline import BATCH
from tests.cli.conftest import Run, pixels

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_file_is_varied_and_enlarged(draw: Run, command: Run) -> None:
    draw("a cat", "--seed", 3, "-o", "x.png")
    assert command("--from-image", "x.png", "--vary", 0.2, "-o", "near.png")[0] == 0
    assert command("--from-image", "x.png", "--vary", 0.6, "-o", "far.png")[0] == 0
    base, near, far = (pixels(name).astype(int) for name in ("x.png", "near.png", "far.png"))
    assert 0 < np.abs(near - base).mean() < np.abs(far - base).mean()
    assert command("--from-image", "near.png", "-o", "again.png")[0] == 0
    assert np.array_equal(pixels("again.png"), pixels("near.png"))
    assert command("--from-image", "x.png", "--upscale", 2, "--upscale-strength", 0.5, "-o", "large.png")[0] == 0
    assert pixels("large.png").shape == (64, 64, 3)
    assert read_request("large.png").seed == 3


def test_more_variations_than_a_batch_are_all_different(draw: Run) -> None:
    status, out, _ = draw("a cat|red", "--matrix", "--seed", 3, "--vary", 0.3, "-n", BATCH + 2, "--steps", 1)
    made = [read_request(path) for path in out.split()]
    assert status == 0 and {request.seed for request in made} == {3}
    for prompt in ("a cat", "a cat, red"):
        seeds = [request.vary_seed for request in made if request.prompt == prompt]
        assert seeds == list(range(4, 4 + BATCH + 2))


def test_a_choice_of_variations_is_refused(draw: Run) -> None:
    status, out, err = draw("a cat", "--vary", 0.3, "--best-of", 2, "--quiet")
    assert (status, out) == (2, "") and "leave one out" in err and err.count("\n") == 1
