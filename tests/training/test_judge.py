import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from genpipe.judge.scene_segmentation import CATEGORIES, MaskHead
from genpipe.scenes import COLOURS, SETTINGS, canonical, concepts, held_out, names
from genpipe.scenes.compose import Composer
from genpipe.training.judge import (
    MOST,
    Labelled,
    ScenePool,
    category_maps,
    draw_scene,
    judge_loss,
    label,
    owners,
    scene_loss,
    segmentation_loss,
    soften,
)
from genpipe.training.loop import Budget, Randomness, choose_accelerator, fit
from genpipe.vision.scene_model import CHANNELS, INPUT_SIDE, STRIDE, SceneModel, SceneOutput, find_objects


@cache
def composer() -> Composer:
    return Composer()


def small(trunk: str = "plain") -> SceneModel:
    torch.manual_seed(0)
    return SceneModel(trunk, concepts=len(names()), colours=len(COLOURS), settings=len(SETTINGS), width=8)


def test_scenes_to_learn_from_are_of_all_kinds_and_of_held_out_combinations_too() -> None:
    rng = random.Random(0)
    scenes = [draw_scene(rng) for _ in range(600)]
    kinds = [scene.kind for scene in scenes]
    assert set(kinds) == {"bare", "setting", "colour", "size", "pair", "count", "place", "crowd"}
    assert sum(held_out(scene) for scene in scenes) > 60
    assert max(len(scene.objects) for scene in scenes) == MOST
    crowds = [scene for scene in scenes if scene.kind == "crowd"]
    assert all(len({o.concept for o in scene.objects}) == len(scene.objects) for scene in crowds)


def test_a_critics_scenes_show_things_in_another_colour_more_often() -> None:
    plain, coloured = ([draw_scene(random.Random(i), share) for i in range(400)] for share in (0.0, 0.5))
    more, less = (sum(scene.kind == "colour" for scene in scenes) for scenes in (coloured, plain))
    assert more > 180 and less < 80
    assert 0.2 < sum(held_out(scene) for scene in coloured if scene.kind == "colour") / more < 0.5
    assert {scene.kind for scene in coloured} == {scene.kind for scene in plain}


def test_labels_are_the_truth_at_the_size_that_the_models_see() -> None:
    first, second = canonical("pirate ship"), canonical("car")
    pair = replace(first, objects=(*first.objects, replace(second.objects[0], colour="red", x=0.2, scale=0.3)))
    drawn = label(composer(), [second, pair])
    assert drawn.pixels.shape == (2, 3, INPUT_SIDE, INPUT_SIDE) and drawn.pixels.dtype == torch.uint8
    assert drawn.settings.tolist() == [SETTINGS.index(second.setting), SETTINGS.index(pair.setting)]
    index = names().index
    assert drawn.concepts.tolist() == [[index("car"), -1, -1, -1], [index("pirate ship"), index("car"), -1, -1]]
    assert drawn.colours[1, :2].tolist() == [len(COLOURS), list(COLOURS).index("red")]
    _, (truth, _) = composer().truth([second, pair])
    assert torch.allclose(drawn.boxes[0, 0], truth.boxes[0] * INPUT_SIDE / 128)
    assert torch.equal(drawn.masks[0], truth.masks[0])
    vehicle = CATEGORIES.index(concepts()["car"].category)
    assert torch.equal(category_maps([truth], 128)[0], truth.masks[0].to(torch.uint8) * vehicle)


def test_what_is_hidden_is_not_to_be_found() -> None:
    front = canonical("castle")
    behind = replace(canonical("bee").objects[0], scale=0.05)
    drawn = label(composer(), [replace(front, objects=(behind, *front.objects))])
    assert drawn.concepts[0, :2].tolist() == [-1, names().index("castle")]


def test_an_object_belongs_to_the_four_cells_around_its_middle() -> None:
    boxes = torch.zeros(1, MOST, 4)
    boxes[0, 0] = torch.tensor([30.0, 30, 34, 34])  # its middle is a corner of four cells
    boxes[0, 1] = torch.tensor([0.0, 0, 90, 90])  # its middle is in the cell in row and column 2
    none = torch.zeros(1)
    shown = Labelled(none, none, torch.tensor([[5, 6, -1, -1]]), none, boxes, none)
    expected = torch.full((6, 6), -1)
    expected[1:3, 1:3] = 0
    for row in range(6):
        for column in range(6):
            middle = torch.tensor([column + 0.5, row + 0.5]) * STRIDE
            if ((middle - 45).abs() < STRIDE).all():
                expected[row, column] = 1
    assert torch.equal(owners(shown, 6, 6)[0], expected)


def test_the_pool_is_a_function_of_the_step_alone() -> None:
    def pool() -> ScenePool:
        return ScenePool(7, initial=6, fresh=2, capacity=8)

    straight, resumed = pool(), pool()
    for step in range(4):
        expected = straight.draw(step, 5, random.Random(step))
    drawn = resumed.draw(3, 5, random.Random(3))
    assert torch.equal(drawn.pixels, expected.pixels) and torch.equal(drawn.concepts, expected.concepts)
    other = ScenePool(8, initial=6, fresh=2, capacity=8).draw(3, 5, random.Random(3))
    assert not torch.equal(drawn.pixels, other.pixels)


def test_softened_images_are_still_the_same_images() -> None:
    pixels = composer().render([canonical("cat"), canonical("ship"), canonical("castle")] * 30)
    soft = soften(pixels, torch.Generator().manual_seed(0))
    assert soft.shape == pixels.shape and soft.abs().max() <= 1
    distance = torch.cdist(soft.flatten(1), pixels[:3].flatten(1))
    assert distance.argmin(1).tolist() == [0, 1, 2] * 30
    sharp, softer = (x.diff(dim=-1).abs().mean((1, 2, 3)) for x in (pixels, soft))
    assert (softer < 0.8 * sharp).any() and (softer > 0.8 * sharp).any()
    assert torch.equal(soft, soften(pixels, torch.Generator().manual_seed(0)))


def test_the_loss_is_least_for_the_truth() -> None:
    model = small()
    shown = label(composer(), [canonical("cat"), canonical("ship")])
    owner = owners(shown, 6, 6)
    boxes = shown.boxes[:, 0][:, None, None].expand(2, 6, 6, 4).clone()
    cells = torch.zeros(2, 6, 6, CHANNELS)
    cells[0, ..., 0] = cells[1, ..., 1] = 1
    with torch.no_grad():
        for head, true in ((model.concepts, shown.concepts[:, 0]), (model.colours, shown.colours[:, 0])):
            head.weight.zero_()
            head.bias.zero_()
            for image in (0, 1):
                head.weight[true[image], image] = 30
    right = SceneOutput(torch.where(owner >= 0, 20.0, -20.0), boxes, cells,
                 30 * torch.nn.functional.one_hot(shown.settings, len(SETTINGS)).float(), torch.zeros(2, CHANNELS))  # fmt: skip
    least = scene_loss(model, right, shown, 0.0)
    assert least < 1e-3
    for name, wrong in (
        ("objectness", -right.objectness),
        ("boxes", right.boxes + 8),
        ("cells", right.cells.flip(0)),
        ("settings", right.settings.flip(0)),
    ):
        assert scene_loss(model, replace(right, **{name: wrong}), shown, 0.0) > least + 0.1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SceneModel:
    """A judge that has seen a few images often enough to know them."""
    pool = ScenePool(1, initial=8, fresh=0)
    model = fit(
        small("resnet18"),
        judge_loss(pool, batch=8, smoothing=0.0),
        directory=tmp_path_factory.mktemp("judge"),
        budget=Budget(steps=100),
        peak_rate=4e-3,
        accelerator=choose_accelerator("cpu", "fp32"),
        average=0.9,
    )
    assert isinstance(model, SceneModel)
    return model


def test_training_finds_things_where_they_are(trained: SceneModel) -> None:
    pool = ScenePool(1, initial=8, fresh=0)
    shown = pool.draw(0, 8, random.Random(0))
    with torch.no_grad():
        seen = trained.eval()(shown.pixels.float() / 127.5 - 1)
    assert (seen.settings.argmax(1) == shown.settings).float().mean() > 0.8
    found = find_objects(trained, seen)
    right = 0
    for objects, true in zip(found, shown.concepts, strict=True):
        right += int(objects.concepts[0].argmax()) in true[true >= 0].tolist()
    assert right >= 6


def test_a_segmentation_learns_on_the_features_and_leaves_them(trained: SceneModel, tmp_path: Path) -> None:
    before = [parameter.clone() for parameter in trained.trunk.state_dict().values()]
    pool = ScenePool(1, initial=8, fresh=0)
    loss = segmentation_loss(pool, batch=8, points=256)
    torch.manual_seed(0)
    head = MaskHead(trained.trunk, channels=16)
    first = loss(head, 0, Randomness.at(0, 0)).item()
    network = fit(
        head, loss, directory=tmp_path, budget=Budget(steps=60), peak_rate=1e-2,
        accelerator=choose_accelerator("cpu", "fp32"), average=0.9,
    )  # fmt: skip
    assert loss(network, 0, Randomness.at(0, 0)).item() < 0.5 * first
    assert all(torch.equal(a, b) for a, b in zip(before, trained.trunk.state_dict().values(), strict=True))
    assert isinstance(network, MaskHead) and not any(name.startswith("_trunk") for name in network.state_dict())
