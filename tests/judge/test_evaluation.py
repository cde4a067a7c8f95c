import math
import random

import pytest
import torch
from PIL import Image
from torch import Tensor

from genpipe.images import to_pil
from genpipe.judge.evaluation import (
    Measured,
    Tally,
    average_precision_50,
    frechet_distance,
    mean_distance,
    measure,
    summary,
    wanted_scene,
)
from genpipe.judge.scene_judge import Judge, Observation
from genpipe.scenes import Scene, names, sample
from genpipe.scenes.compose import Composer
from genpipe.scenes.parse import WantedObject, WantedScene
from genpipe.scenes.places import SETTINGS
from genpipe.vision.scene_model import CHANNELS, INPUT_SIDE, FoundObjects, SceneModel


class Oracle(Judge):
    """Sees in each image what a scene of another list shows."""

    def __init__(self, scenes: list[Scene]) -> None:
        super().__init__(SceneModel("plain", concepts=780, colours=12, settings=21, width=8))
        self.shown = scenes

    def observe(self, images) -> list[Observation]:
        return [self.of(scene) for scene in self.shown]

    def of(self, scene: Scene) -> Observation:
        things = scene.objects
        boxes = [
            [(o.x - 0.2) * INPUT_SIDE, (o.y - 0.2) * INPUT_SIDE, (o.x + 0.2) * INPUT_SIDE, (o.y + 0.2) * INPUT_SIDE]
            for o in things
        ]
        return Observation(
            FoundObjects(
                torch.full((len(things),), 0.9),
                torch.tensor(boxes).reshape(-1, 4),
                one_hot([names().index(o.concept) for o in things], 780),
                one_hot([self.colours.index(o.colour) if o.colour else 12 for o in things], 13),
            ),
            one_hot([SETTINGS.index(scene.setting)], 21)[0],
            torch.randn(CHANNELS),
        )


def one_hot(indices: list[int], size: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(indices, dtype=torch.long), size).float()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(3)
    return [scene for scene in (sample(rng) for _ in range(400)) if scene.objects]


def test_images_that_show_their_scenes_are_all_right(scenes: list[Scene]) -> None:
    measured = measure(Oracle(scenes), [Image.new("RGB", (8, 8))] * len(scenes), scenes)
    shares = summary(measured)
    assert shares.pop("object_top1_error") == shares.pop("object_top5_error") == 0
    assert set(shares) == {"pair", "setting", "colour", "count", "relation", "satisfied"}
    assert set(shares.values()) == {1.0}
    kinds = [scene.kind for scene in scenes]
    assert measured.tallies["pair"].total == kinds.count("pair") and measured.tallies["count"].total == kinds.count(
        "count"
    )
    assert measured.tallies["object_top1"].total == len(scenes) - kinds.count("pair")
    assert measured.tallies["relation"].total == sum(scene.relation is not None for scene in scenes)
    assert all(measured.satisfied)


def test_what_differs_is_counted_where_it_differs(scenes: list[Scene]) -> None:
    others = scenes[1:] + scenes[:1]
    measured = measure(Oracle(others), [Image.new("RGB", (8, 8))] * len(scenes), scenes)
    placed = [
        (a, b) for a, b in zip(scenes, others, strict=True) if a.stated or not a.objects
    ]  # the rest may be anywhere
    assert measured.tallies["setting"] == Tally(sum(a.setting == b.setting for a, b in placed), len(placed))
    singles = [(a, b) for a, b in zip(scenes, others, strict=True) if len({o.concept for o in a.objects}) == 1]
    hits = sum(a.objects[0].concept == b.objects[0].concept for a, b in singles)
    assert measured.tallies["object_top1"] == Tally(hits, len(singles))
    assert sum(tally.total for tally in measured.concepts.values()) == len(singles)


def test_the_worst_concepts_come_first() -> None:
    measured = Measured(torch.zeros(1, 1))
    measured.concepts.update(cat=Tally(1, 2), dog=Tally(0, 1), ship=Tally(3, 3), owl=Tally(0, 4))
    assert measured.worst(3) == [("owl", 0.0, 4), ("dog", 0.0, 1), ("cat", 0.5, 2)]
    assert math.isnan(Tally().share)


def test_a_scene_asks_for_all_that_it_shows() -> None:
    rng = random.Random(0)
    counted = next(scene for scene in iter(lambda: sample(rng), None) if scene.kind == "count" and scene.stated)
    things = (WantedObject(counted.objects[0].concept, count=len(counted.objects)),)
    assert wanted_scene(counted) == WantedScene(things, counted.setting)


def test_average_precision_is_one_where_every_box_is_found(scenes: list[Scene]) -> None:
    oracle = Oracle(scenes[:20])
    boxes = [observation.objects.boxes * (128 / INPUT_SIDE) for observation in oracle.observe([])]
    assert average_precision_50(oracle.observe([]), boxes, 128) == 1
    half = [part[: len(part) // 2] for part in boxes]
    found = sum(map(len, half))
    # All scores are equal, so precision is what is found at the end, or better on the way there.
    assert average_precision_50(oracle.observe([]), half, 128) >= found / sum(map(len, boxes)) - 1e-9


def test_the_mean_distance_is_that_of_every_two() -> None:
    assert mean_distance(torch.tensor([[0.0, 0], [3, 4], [0, 4]])) == pytest.approx((5 + 4 + 3) / 3)
    with pytest.raises(ValueError, match="1 images have no distance"):
        mean_distance(torch.zeros(1, 2))


def test_frechet_distance_against_its_closed_form() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(500, 4).double(), torch.randn(300, 4).double() * torch.tensor([1.0, 2.0, 0.5, 1.0]) + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    scipy = pytest.importorskip("scipy.linalg")
    ca, cb = a.T.cov(), b.T.cov()
    root = scipy.sqrtm((ca @ cb).numpy()).real
    expected = (a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(a, b[:1])


def test_images_and_scenes_go_together(scenes: list[Scene]) -> None:
    drawn = to_pil(Composer(size=32).render(scenes[:2]))
    with pytest.raises(ValueError, match="2 images for 3 scenes"):
        measure(Oracle(scenes[:2]), drawn, scenes[:3])
