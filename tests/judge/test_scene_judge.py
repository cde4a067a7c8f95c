import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from genpipe.judge import Score, choose_judge, score
from genpipe.judge.scene_judge import Judge, Observation
from genpipe.scenes.parse import parse
from genpipe.vision.scene_model import CHANNELS, INPUT_SIDE, FoundObjects, SceneModel

CONCEPTS, COLOURS, SETTINGS = ("cat", "dog", "ship"), ("red", "blue"), ("sea", "snow")


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    model = SceneModel("plain", concepts=3, colours=2, settings=2, width=8)
    return Judge(model, concepts=CONCEPTS, colours=COLOURS, settings=SETTINGS)


def chances(size: int, index: int, chance: float) -> Tensor:
    row = torch.full((size,), (1 - chance) / (size - 1))
    row[index] = chance
    return row


def observation(*things: tuple[str, str | None, float, float], setting: str = "sea") -> Observation:
    """An image of things: concept, colour, x and y of the middle as shares."""
    boxes = [
        [(x - 0.1) * INPUT_SIDE, (y - 0.1) * INPUT_SIDE, (x + 0.1) * INPUT_SIDE, (y + 0.1) * INPUT_SIDE]
        for _, _, x, y in things
    ]
    objects = FoundObjects(
        scores=torch.full((len(things),), 0.9),
        boxes=torch.tensor(boxes),
        concepts=torch.stack([chances(3, CONCEPTS.index(concept), 0.8) for concept, *_ in things]),
        colours=torch.stack([chances(3, COLOURS.index(colour) if colour else 2, 0.7) for _, colour, *_ in things]),
    )
    return Observation(objects, chances(2, SETTINGS.index(setting), 0.75), torch.zeros(CHANNELS))


def judged(judge: Judge, prompt: str, seen: Observation) -> Score:
    return judge.compare(seen, prompt, parse(prompt))


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a cat", []),
        ("a dog", []),
        ("a ship", ["object"]),
        ("a red cat", []),
        ("a blue cat", ["colour"]),
        ("красный корабль", ["object"]),  # of two things that are none, the red one may be meant
        ("a cat and a dog", []),
        ("a cat and a ship", ["object"]),
        ("a cat to the left of a dog", []),
        ("a dog to the left of a cat", ["relation"]),
        ("собака под кошкой", ["relation"]),
        ("two cats", ["object"]),
        ("one cat", ["count"]),
        ("a cat at sea", []),
        ("three dogs", ["object", "count"]),
        ("a cat in the snow", ["setting"]),
        ("a blue dog in the snow", ["colour", "setting"]),
    ],
)
def test_what_is_wrong_is_named(judge: Judge, prompt: str, wrong: list[str]) -> None:
    found = judged(judge, prompt, observation(("cat", "red", 0.3, 0.5), ("dog", None, 0.7, 0.5)))
    assert [check.part for check in found.checks if not check.right] == wrong
    assert found.satisfied is (not wrong)


def test_the_total_is_the_geometric_mean_of_the_checks(judge: Judge) -> None:
    found = judged(judge, "a red cat at sea", observation(("cat", "red", 0.5, 0.5)))
    colour = 0.7 / (0.7 + 0.15)  # of the tints alone
    assert [check.probability for check in found.checks] == pytest.approx([0.8 * 0.9, colour, 0.75])
    assert found.total == pytest.approx((0.8 * 0.9 * colour * 0.75) ** (1 / 3))


def test_the_chance_of_a_number_is_that_of_all_ways_to_have_it(judge: Judge) -> None:
    things = observation(*[("cat", None, 0.5, 0.5)] * 4)
    scores = torch.tensor([0.9, 0.8, 0.6, 0.1])
    seen = Observation(FoundObjects(scores, things.objects.boxes, things.objects.concepts, things.objects.colours),
                 things.settings, things.features)  # fmt: skip
    for n in (1, 2, 3, 4):
        ways = [way for way in product((0, 1), repeat=4) if sum(way) == n]
        expected = sum(math.prod(s if there else 1 - s for s, there in zip(scores.tolist(), way)) for way in ways)  # noqa: B905
        (check,) = (c for c in judged(judge, f"{n} cats", seen).checks if c.part == "count")
        assert check.probability == pytest.approx(expected, abs=1e-6)
        assert (check.found, check.right) == ("3", n == 3)


def test_each_thing_is_taken_once_unless_there_are_too_few(judge: Judge) -> None:
    both = judged(judge, "a cat and a dog", observation(("dog", None, 0.3, 0.5), ("cat", None, 0.7, 0.5)))
    assert both.satisfied and [check.wanted for check in both.checks] == ["cat", "dog"]
    one = judged(judge, "a cat to the left of a dog", observation(("dog", None, 0.5, 0.5)))
    assert [(check.part, check.right) for check in one.checks] == [
        ("object", False),
        ("object", True),
        ("relation", False),
    ]


def test_a_number_of_things_has_to_be_of_the_kind(judge: Judge) -> None:
    cats = observation(("cat", None, 0.3, 0.5), ("cat", None, 0.7, 0.5))
    assert judged(judge, "two cats", cats).satisfied
    mixed = judged(judge, "two cats", observation(("cat", None, 0.3, 0.5), ("dog", None, 0.7, 0.5)))
    assert mixed.checks[0].found == "cat, dog" and mixed.checks[0].probability == pytest.approx(0.9 * (0.8 + 0.1) / 2)


def test_a_faint_thing_is_nothing(judge: Judge) -> None:
    seen = observation(("cat", None, 0.5, 0.5))
    seen.objects.scores[0] = 0.2
    (check,) = judged(judge, "cat", seen).checks
    assert (check.found, check.right) == ("nothing", False) and check.probability == pytest.approx(0.16)


def test_a_score_is_json(judge: Judge) -> None:
    read = json.loads(json.dumps(judged(judge, "a cat", observation(("cat", None, 0.5, 0.5))).to_dict()))
    assert read["prompt"] == "a cat" and read["satisfied"] is True and 0 < read["total"] < 1
    assert read["checks"][0] | {"probability": 0} == {
        "part": "object", "wanted": "cat", "found": "cat", "probability": 0, "right": True
    }  # fmt: skip


def test_a_saved_judge_sees_the_same(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    again = Judge.load(tmp_path / "judge.safetensors", device="cpu")
    assert (again.concepts, again.colours, again.settings) == (CONCEPTS, COLOURS, SETTINGS)
    image = Image.linear_gradient("L").convert("RGB")
    (first,), (second,) = judge.observe([image]), again.observe([image])
    assert torch.allclose(first.settings, second.settings, atol=2e-3)  # fp16 on the disk
    assert torch.allclose(first.features, second.features, rtol=1e-2, atol=1e-3)
    assert not list(tmp_path.glob("*.part"))


def test_images_of_any_size_and_mode_are_looked_at_alike_alone_and_in_a_batch(judge: Judge, tmp_path: Path) -> None:
    image = Image.effect_noise((INPUT_SIDE, INPUT_SIDE), 80)
    alone = judge.observe([image])[0]
    for other in judge.observe([image.convert("RGB"), image, Image.new("RGB", (640, 480))])[:2]:
        assert torch.allclose(alone.features, other.features, atol=1e-5)
    image.save(tmp_path / "noise.png")
    assert score(tmp_path / "noise.png", "cat", judge=judge) == score(image, "cat", judge=judge)


def test_what_cannot_be_judged_is_refused(judge: Judge, tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match=r"prompt 'justice' names nothing of the embedded world.*give a CLIP model"):
        score(image, "justice", judge=judge)
    (tmp_path / "bad.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"bad.safetensors is truncated or not safetensors"):
        Judge.load(tmp_path / "bad.safetensors")
    with pytest.raises(FileNotFoundError):
        Judge.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is not a CLIP model that can be loaded"):
        choose_judge(tmp_path)
