"""The best of several candidates is kept."""

import json
from typing import Any

import numpy as np
import pytest

from genpipe.judge import Score
from genpipe.metadata import read_request
from genpipe.pipeline import Pipeline
from tests.pipeline.drawing import difference, draw


class Brightness:
    """Scores a picture by how bright it is."""

    def check_prompt(self, prompt: str) -> None:
        if prompt == "justice":
            raise ValueError("prompt 'justice' cannot be judged")

    def scores(self, images: Any, prompts: Any) -> list[Score]:
        brightness = [float(np.asarray(image).mean()) / 255 for image in images]
        return [Score(prompt, value) for prompt, value in zip(prompts, brightness, strict=True)]


def test_the_best_of_several_is_kept_with_the_scores_of_all(pipe: Pipeline) -> None:
    drawn = draw(pipe, ["a red cat", "a blue dog"], n=4, seed=3, deterministic=True)
    values = [float(np.asarray(image).mean()) / 255 for image in drawn]
    chosen = draw(pipe, ["a red cat", "a blue dog"], n=2, best_of=2, seed=3, judge=Brightness(), deterministic=True)
    assert len(chosen) == 4
    for index, image in enumerate(chosen):
        pair = values[2 * index : 2 * index + 2]
        best = 2 * index + pair.index(max(pair))
        assert difference(image, drawn[best]) == 0
        made = json.loads(image.info["genpipe"])
        assert [entry["total"] for entry in made["best_of"]] == pytest.approx(pair)
        assert [entry["seed"] for entry in made["best_of"]] == [3 + 2 * index, 4 + 2 * index]
        assert read_request(image) == read_request(drawn[best])


def test_a_prompt_that_the_judge_cannot_read_keeps_its_first_picture_and_says_so(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="the first of 3 images is kept.*: prompt 'justice' cannot be judged"):
        images = draw(pipe, ["justice", "a cat"], n=1, best_of=3, seed=3, judge=Brightness(), steps=1)
    made = [json.loads(image.info["genpipe"]) for image in images]
    assert [one["seed"] for one in made[:1]] == [3] and made[1]["seed"] in (6, 7, 8)
    assert [entry["total"] for entry in made[0]["best_of"]] == [None] * 3
    assert made[0]["best_of"][0]["reason"] == "prompt 'justice' cannot be judged"
    assert all(entry["total"] > 0 for entry in made[1]["best_of"])


def test_given_seeds_are_where_each_choice_begins(pipe: Pipeline) -> None:
    images = draw(pipe, n=2, seed=None, seeds=[9, 2**64 - 1], best_of=2, judge=Brightness(), steps=1)
    seeds = [[entry["seed"] for entry in json.loads(image.info["genpipe"])["best_of"]] for image in images]
    assert seeds == [[9, 10], [2**64 - 1, 0]]
    assert not isinstance(draw(pipe, best_of=2, judge=Brightness(), steps=1), list)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"best_of": 0}, "best_of must be a whole number from 1 to 100, not 0"),
        ({"best_of": 2}, "the embedded judge knows only what the embedded model draws: give a CLIP model as judge"),
        ({"best_of": 2, "judge": "/no/such/folder"}, "judge '/no/such/folder' is not a CLIP model that can be loaded"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_drawing(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(Pipeline, "stream", lambda *_: pytest.fail("something was drawn"))
    with pytest.raises(ValueError, match=says):
        draw(pipe, **settings)
