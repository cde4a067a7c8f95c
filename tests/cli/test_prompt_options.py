"""Styles, wildcards, a matrix and a ratio on the command line: the images are those of the prompts that they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genpipe.metadata import read_request
from genpipe.pipeline import Pipeline
from genpipe.prompts.styles import presets
from genpipe.prompts.wildcards import Wildcards
from tests.cli.conftest import Run, pixels

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu")


def same(pipe: Pipeline, path: str, prompt: str, **settings: Any) -> bool:
    image = pipe(prompt, steps=2, progress=False, **settings)
    return np.array_equal(np.asarray(image), pixels(path))


def test_a_style_is_drawn_as_the_words_that_it_stands_for(draw: Run, pipe: Pipeline) -> None:
    assert draw("a red cat", "--style", "watercolour", "--no", "dog", "--seed", 1)[:2] == (0, "a-red-cat.png\n")
    style = presets()["watercolour"]
    negative = ", ".join(filter(None, ["dog", style.negative_prompt]))
    prompt = (
        style.prompt.replace("{prompt}", "a red cat") if "{prompt}" in style.prompt else f"a red cat, {style.prompt}"
    )
    assert same(pipe, "a-red-cat.png", prompt, negative_prompt=negative, seed=1)
    assert not same(pipe, "a-red-cat.png", "a red cat", negative_prompt="dog", seed=1)


def test_styles_come_from_a_file_in_the_form_of_a1111s(draw: Run, pipe: Pipeline) -> None:
    Path("mine.csv").write_text('name,prompt,negative_prompt\nNight,"{prompt} at night",sun\n')
    assert draw("a cat", "--styles", "mine.csv", "--style", "night", "--seed", 1)[0] == 0
    assert same(pipe, "a-cat.png", "a cat at night", negative_prompt="sun", seed=1)


def test_wildcards_are_filled_anew_for_every_seed_and_recorded(draw: Run, pipe: Pipeline) -> None:
    Path("words").mkdir()
    Path("words/colour.txt").write_text("red\nblue\ngreen\nwhite\n")
    status, out, _ = draw("a __colour__ cat", "--wildcards", "words", "-n", 6, "--seed", 4, "--deterministic")
    filled = [Wildcards("words").fill("a __colour__ cat", seed) for seed in range(4, 10)]
    assert status == 0 and [read_request(path).prompt for path in out.split()] == filled and len(set(filled)) > 1
    assert same(pipe, out.split()[2], filled[2], seed=6)


def test_a_wildcard_without_a_folder_is_told_and_drawn_as_text(draw: Run) -> None:
    status, out, err = draw("a __colour__ cat", "--seed", 4)
    assert status == 0 and "__colour__ is drawn as text: give --wildcards DIR" in err
    assert read_request(out.strip()).prompt == "a __colour__ cat"


def test_a_matrix_is_every_choice_of_parts_under_one_seed(draw: Run, pipe: Pipeline) -> None:
    status, out, _ = draw("a cat|at sea|red", "--matrix", "--seed", 7, "-o", "{index}.png", "--deterministic")
    prompts = ["a cat", "a cat, at sea", "a cat, red", "a cat, at sea, red"]
    assert status == 0 and sorted(read_request(path).prompt for path in out.split()) == sorted(prompts)
    assert {read_request(path).seed for path in out.split()} == {7}
    assert all(same(pipe, path, read_request(path).prompt, seed=7) for path in out.split())


@pytest.mark.parametrize(("ratio", "size"), [("1:1", (32, 32)), ("2:1", (48, 24)), ("1:2", (24, 48))])
def test_a_ratio_becomes_a_size_of_the_models_area(
    draw: Run, pipe: Pipeline, ratio: str, size: tuple[int, int]
) -> None:
    assert draw("a cat", "--ar", ratio, "--seed", 1)[0] == 0
    assert pixels("a-cat.png").shape == (size[1], size[0], 3)
    assert same(pipe, "a-cat.png", "a cat", width=size[0], height=size[1], seed=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "--style", "watercolor"], "did you mean watercolour"),
        (["a", "--styles", "none.csv", "--style", "x"], "none.csv: No such file"),
        (["a", "--styles", "none.csv"], "has no effect: say which of them with --style"),
        (["a __x__", "--wildcards", "nowhere"], "is not a folder"),
        (["a __x__", "--wildcards", "."], "x.txt"),
        (["a", "--no", "__x__", "--wildcards", "."], "wildcards are for the prompt"),
        (["a", "--ar", "16:0"], "out of range"),
        (["a", "--ar", "wide"], "is not a ratio: write it as 16:9"),
        (["a", "--ar", "1:1", "--size", "64"], "two sizes: give --ar or --size"),
    ],
)
def test_a_mistake_is_one_line(draw: Run, arguments: list[str], says: str) -> None:
    status, out, err = draw(*arguments, "--quiet")
    assert status in (1, 2) and not out and says in err and err.count("\n") == 1
    assert not list(Path().glob("*.png"))
