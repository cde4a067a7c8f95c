import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genpipe.scenes import sample
from genpipe.scenes.compose import Composer
from genpipe.training.detection import (
    RADIUS,
    LabelledBoxes,
    assign,
    detection_loss,
    fcos_loss,
    focal_loss,
    generalised_iou,
    objects_of,
    scene_objects,
    true_centreness,
)
from genpipe.training.loop import Budget, Randomness, choose_accelerator, fit
from genpipe.vision.detection import STRIDE, Detector, DetectorConfig, Maps, places
from genpipe.vision.metrics import mean_average_precision

CONCEPTS = ("pirate ship", "apple", "car")


def random_boxes(generator: torch.Generator, n: int) -> Tensor:
    corner = torch.randint(0, 48, (n, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(1, 40, (n, 2), generator=generator)], dim=1).float()


@pytest.mark.parametrize("seed", range(3))
def test_places_learn_the_smallest_box_they_are_in_the_middle_of(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = random_boxes(generator, 5), torch.arange(5)
    points = places(8, 8)
    given, sides = assign(points, boxes, labels)
    for (x, y), label, distances in zip(points.tolist(), given.tolist(), sides.tolist(), strict=True):
        fitting = []
        for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
            off = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
            if left < x < right and top < y < bottom and off <= RADIUS * STRIDE:
                fitting.append(((right - left) * (bottom - top), index))
        assert label == (min(fitting)[1] if fitting else -1)
        if fitting:
            left, top, right, bottom = boxes[label].tolist()
            assert distances == [x - left, y - top, right - x, bottom - y]
    assert 0 < (given >= 0).sum() < 64


def test_an_image_without_objects_has_nothing_to_find() -> None:
    labels, sides = assign(places(2, 3), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert labels.tolist() == [-1] * 6 and sides.shape == (6, 4)


def test_generalised_iou_is_counted_in_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = random_boxes(generator, 20), random_boxes(generator, 20)

    def pixels(box: list[float]) -> set[tuple[int, int]]:
        left, top, right, bottom = map(int, box)
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    for value, a, b in zip(generalised_iou(first, second).tolist(), first.tolist(), second.tolist(), strict=True):
        around = pixels([*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:])])
        union = pixels(a) | pixels(b)
        expected = len(pixels(a) & pixels(b)) / len(union) - len(around - union) / len(around)
        assert value == pytest.approx(expected, abs=1e-5)


def test_focal_loss_and_centreness_are_the_papers() -> None:
    logits, target = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, 1.0])
    chances = logits.sigmoid()
    expected = [
        -0.25 * (1 - chances[0]) ** 2 * chances[0].log(),
        -0.75 * chances[1] ** 2 * (1 - chances[1]).log(),
        -0.25 * (1 - chances[2]) ** 2 * chances[2].log(),
    ]
    assert focal_loss(logits, target).tolist() == pytest.approx([value.item() for value in expected], rel=1e-5)
    sides = torch.tensor([[3.0, 5.0, 3.0, 5.0], [1.0, 2.0, 4.0, 8.0]])
    assert true_centreness(sides).tolist() == pytest.approx([1.0, (1 / 4 * 2 / 8) ** 0.5])


def perfect(objects: LabelledBoxes, sureness: float) -> Maps:
    labels, sides = assign(places(8, 8), objects.boxes, objects.labels)
    classes = torch.full((64, 3), -sureness)
    classes[labels >= 0, labels[labels >= 0]] = sureness
    middle = torch.where(labels >= 0, true_centreness(sides.clamp(min=1e-3)), 0.5).logit()

    def as_map(part: Tensor) -> Tensor:
        return part.T.reshape(1, -1, 8, 8)

    return Maps(as_map(classes), as_map(middle[:, None]), as_map(sides.clamp(min=1e-3)))


def test_the_loss_of_what_is_right_is_least() -> None:
    objects = LabelledBoxes(torch.tensor([[4.0, 4.0, 40.0, 36.0], [30.0, 30.0, 60.0, 62.0]]), torch.tensor([2, 0]))
    right = fcos_loss(perfect(objects, 12.0), [objects])
    labels, sides = assign(places(8, 8), objects.boxes, objects.labels)
    target = true_centreness(sides[labels >= 0])
    entropy = -(target * target.log() + (1 - target) * (1 - target).clamp(min=1e-12).log()).mean()
    assert right.item() == pytest.approx(entropy.item(), abs=1e-3)  # no less is possible of the centreness
    moved = LabelledBoxes(objects.boxes + 2, objects.labels)
    renamed = LabelledBoxes(objects.boxes, 2 - objects.labels)
    for wrong in (moved, renamed, LabelledBoxes(objects.boxes[:1], objects.labels[:1])):
        assert fcos_loss(perfect(objects, 12.0), [wrong]) > right + 0.05


def test_a_batch_without_objects_teaches_that_nothing_is_there() -> None:
    torch.manual_seed(0)
    network = Detector(DetectorConfig(classes=3, width=4, channels=8))
    nothing = LabelledBoxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    loss = fcos_loss(network(torch.randn(2, 3, 64, 64)), [nothing, nothing])
    loss.backward()
    bias = network.get_parameter("classes.bias").grad
    assert loss.isfinite() and bias is not None and (bias > 0).all()


def test_objects_are_those_that_can_be_seen() -> None:
    scenes = [sample(random.Random(seed), CONCEPTS) for seed in range(20)]
    for scene, truth in zip(scenes, Composer(size=32).truth(scenes)[1], strict=True):
        objects = objects_of(truth, CONCEPTS)
        assert [CONCEPTS[label] for label in objects.labels.tolist()] == [placed.concept for placed in scene.objects]
        assert torch.equal(objects.boxes, truth.boxes)
    truth.boxes[:] = 0
    assert objects_of(truth, CONCEPTS).boxes.shape == (0, 4)


def test_a_small_network_learns_where_things_are(tmp_path: Path) -> None:
    batches = scene_objects(Composer(size=48), CONCEPTS, 12)
    torch.manual_seed(0)
    model = fit(
        Detector(DetectorConfig(classes=3, width=8, channels=16, convolutions=1)),
        detection_loss(batches),
        directory=tmp_path,
        budget=Budget(steps=120),
        peak_rate=8e-3,
        accelerator=choose_accelerator("cpu", "fp32"),
        average=0.9,
    )
    assert isinstance(model, Detector)
    pixels, objects = scene_objects(Composer(size=48), CONCEPTS, 64)(Randomness.at(1, 0))
    found = model.detect(pixels)
    precision = mean_average_precision(
        [each.boxes for each in found],
        [each.scores for each in found],
        [each.labels for each in found],
        [each.boxes for each in objects],
        [each.labels for each in objects],
    )
    assert precision > 0.35
