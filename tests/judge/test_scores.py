"""One protocol of judges, and what becomes of images that a judge cannot score."""

import json
import math
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from genpipe.judge import Score, Scorer, Unscored, best_index, choose_judge, judged, score
from genpipe.judge.clip import ClipJudge
from genpipe.judge.scene_judge import Judge


class Width:
    """Scores an image by its width in hundreds of pixels; some images break it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def check_prompt(self, prompt: str) -> None:
        if prompt == "justice":
            raise ValueError("prompt 'justice'\nshows nothing")
        if prompt == "broken":
            raise KeyError("no such word")

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        self.asked.append(len(images))
        if any(image.width == 13 for image in images):
            raise ArithmeticError("thirteen")
        totals = [math.nan if image.width == 7 else image.width / 100 for image in images]
        return [Score(prompt, total) for prompt, total in zip(prompts, totals, strict=True)]


def images(*widths: int) -> list[Image.Image]:
    return [Image.new("RGB", (width, 4)) for width in widths]


def test_the_shipped_judges_and_any_class_of_these_two_methods_are_scorers() -> None:
    assert issubclass(Judge, Scorer) and issubclass(ClipJudge, Scorer) and isinstance(Width(), Scorer)
    assert not isinstance(print, Scorer)


def test_no_image_is_lost_to_a_prompt_that_the_judge_cannot_read() -> None:
    judge = Width()
    found = judged(images(10, 20, 30, 40), ["cat", "justice", "dog", "broken"], judge)
    assert found[0] == Score("cat", 0.1) and found[2] == Score("dog", 0.3)
    assert found[1] == Unscored("justice", "prompt 'justice' shows nothing")
    assert found[3] == Unscored("broken", "the judge failed: KeyError: 'no such word'")
    assert judge.asked == [2]  # it was not shown the others


def test_one_image_that_breaks_the_judge_costs_the_others_nothing() -> None:
    found = judged(images(10, 13, 7, 20), ["cat"] * 4, Width())
    assert [one.to_dict()["total"] for one in found] == [0.1, None, None, 0.2]
    assert isinstance(found[1], Unscored) and found[1].reason == "the judge failed: ArithmeticError: thirteen"
    assert isinstance(found[2], Unscored) and found[2].reason == "the judge gave a total of nan"
    json.dumps([one.to_dict() for one in found], allow_nan=False)


def test_where_nothing_can_be_read_the_judge_is_not_asked() -> None:
    judge = Width()
    assert all(isinstance(one, Unscored) for one in judged(images(1, 2), ["justice"] * 2, judge))
    assert judge.asked == [] and judged([], [], judge) == []
    with pytest.raises(ValueError, match="2 images and 1 prompts cannot be judged"):
        judged(images(1, 2), ["cat"], judge)


def test_the_best_is_the_highest_the_first_of_equals_and_the_first_of_none() -> None:
    none = Unscored("cat", "no")
    assert best_index([Score("cat", 0.1), Score("cat", 0.5), Score("cat", 0.5)]) == 1
    assert best_index([none, Score("cat", 0.0)]) == 1
    assert best_index([none, none]) == 0


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_judges")
    vars(module).update(Width=Width, made=Width(), number=3, brightness=lambda image, prompt: Score(prompt, 0.25))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize(("name", "total"), [("Width", 0.5), ("made", 0.5), ("brightness", 0.25)])
def test_a_judge_of_your_own_is_a_class_an_object_or_a_function(own: types.ModuleType, name: str, total: float) -> None:
    (image,) = images(50)
    judge = choose_judge(f"own_judges:{name}")
    assert judged([image], ["cat"], judge) == [Score("cat", total)]
    assert score(image, "cat", judge=f"own_judges:{name}") == Score("cat", total)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere:score", "judge 'nowhere:score' cannot be imported: No module named 'nowhere'"),
        ("own_judges:none", "judge 'own_judges:none' cannot be imported: module 'own_judges' has no attribute"),
        (
            "own_judges:number",
            "judge 'own_judges:number' is of type int: name a function, or a judge with a method scores",
        ),
    ],
)
def test_a_judge_that_is_not_available_is_one_line(own: types.ModuleType, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        choose_judge(name)


def test_a_folder_with_a_colon_in_its_path_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a CLIP model that can be loaded"):
        choose_judge(str(tmp_path / "a:b"))
