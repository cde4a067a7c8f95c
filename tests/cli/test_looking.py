"""--grid, --plot and --preview: sheets hold the very images that are drawn one by one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genpipe.images import grid
from genpipe.metadata import read_metadata
from genpipe.pipeline import Pipeline
from genpipe.pipeline.progress import Progress
from tests.cli.conftest import Run, pixels

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("named", "sheet"),
    [([], "a-cat-grid.png"), (["-o", "{index}.png"], "grid.png"), (["-o", "x-%02d.png"], "x-grid.png")],
)
def test_a_grid_holds_the_images_that_are_saved_too(draw: Run, named: list[str], sheet: str) -> None:
    status, out, _ = draw("a cat", "-n", 4, "--seed", 1, "--grid", *named)
    *paths, last = out.split()
    assert status == 0 and len(paths) == 4 and last == sheet
    drawn = [pixels(path) for path in paths]
    rows = [np.concatenate(drawn[start : start + 2], axis=1) for start in (0, 2)]
    assert np.array_equal(pixels(sheet), np.concatenate(rows))


def test_a_grid_of_one_given_name_stands_beside_it(draw: Run) -> None:
    assert draw("a cat", "--grid", "-o", "x.png")[1] == "x.png\nx-grid.png\n"


def test_a_plot_shows_the_images_of_its_settings_under_labels(
    command: Run, tiny_checkpoint: Path, pipe: Pipeline
) -> None:
    given = ["a cat", "--seed", 3, "--size", 64, "--model", tiny_checkpoint, "--device", "cpu"]
    status, out, _ = command(*given, "--plot", "steps=2,3", "sampler=ddim,euler_a,heun")
    assert (status, out) == (0, "a-cat-plot.png\n")
    sheet, told = pixels("a-cat-plot.png"), json.loads(Path("a-cat-plot.json").read_text())
    assert told["axes"] == [
        {"name": "steps", "values": [2, 3]},
        {"name": "sampler", "values": ["ddim", "euler_a", "heun"]},
    ]
    assert [(cell["row"], cell["column"]) for cell in told["cells"]] == [(r, c) for r in range(3) for c in range(2)]
    places = []
    for cell in told["cells"]:
        settings: Any = {"steps": cell["steps"], "sampler": cell["sampler"], "width": 64, "height": 64}
        image = pipe("a cat", seed=3, progress=False, **settings)
        assert json.loads(image.info["genpipe"]) == cell["genpipe"]
        places.append(place_in(sheet, np.asarray(image)))
    # Each is where its row and column say, in equal distances, with room for labels above and on the left.
    tops, lefts = (np.array([place[axis] for place in places]).reshape(3, 2) for axis in (0, 1))
    assert (np.diff(tops, axis=0) == 64).all() and (np.diff(tops, axis=1) == 0).all() and tops[0, 0] > 0
    assert (np.diff(lefts, axis=1) >= 64).all() and (np.diff(lefts, axis=0) == 0).all() and lefts[0, 0] > 0
    assert (sheet[: tops[0, 0]] < 128).any() and (sheet[:, : lefts[0, 0]] < 128).any()  # something is written there


def place_in(sheet: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Row and column of the image's top left pixel in a sheet that holds it once."""
    height, width, _ = image.shape
    found = [
        (top, left)
        for top in range(sheet.shape[0] - height + 1)
        for left in range(sheet.shape[1] - width + 1)
        if np.array_equal(sheet[top, left], image[0, 0])
        and np.array_equal(sheet[top : top + height, left : left + width], image)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plot", "steps"], "is no side of a plot"),
        (["--plot", "prompt=a,b"], "is no side of a plot"),
        (["--plot", "steps=1,many"], "'many'"),
        (["--plot", "sampler=ddim", "sampler=euler"], "a sheet has two sides, one setting each"),
        (["--plot", "sampler=ddim", "seed=1,2", "speed=draft"], "a sheet has two sides, one setting each"),
        (["--plot", "steps=1,2"], "--plot and another option both set steps"),
        (["--ar", "2:1", "--plot", "width=8,16"], "--plot and another option both set width"),
        (["-n", "2", "--plot", "sampler=ddim"], "leave -n"),
        (["--plot", f"seed={','.join(map(str, range(401)))}"], "401 images: 400 at most"),
        (["--preview", "x.tiff"], "has to end in"),
        (["--preview", "nowhere/x.png"], "is in a folder that does not exist"),
    ],
)
def test_a_mistake_is_one_line(draw: Run, arguments: list[str], says: str) -> None:
    status, out, err = draw("a cat", *arguments, "--quiet")
    assert (status, out) == (2, "") and says in err and err.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_preview_is_the_last_steps_image_and_changes_nothing(draw: Run, pipe: Pipeline) -> None:
    seen: list[Progress] = []
    images = pipe("a cat", n=2, seed=5, steps=3, progress=False, callback=seen.append)
    status, out, _ = draw("a cat", "-n", 2, "--seed", 5, "--steps", 3, "--preview", "now.png")
    assert status == 0 and Path("now.png").is_file()
    assert np.array_equal(pixels("now.png"), np.asarray(grid(seen[-1].preview())))
    assert not np.array_equal(pixels("now.png"), np.asarray(grid(seen[0].preview())))
    for path, image in zip(out.split(), images, strict=True):
        assert np.array_equal(pixels(path), np.asarray(image)) and read_metadata(path) == read_metadata(image)
