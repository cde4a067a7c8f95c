import pytest
import torch
from torch import Tensor

from genpipe.vision.detection import STRIDE, Detector, DetectorConfig, Maps, decode, places, suppress
from genpipe.vision.metrics import box_iou

TINY = DetectorConfig(classes=3, width=4, channels=8, convolutions=1)


def random_boxes(generator: torch.Generator, n: int) -> Tensor:
    corner = 20 * torch.rand(n, 2, generator=generator)
    return torch.cat([corner, corner + 1 + 15 * torch.rand(n, 2, generator=generator)], dim=1)


@pytest.mark.parametrize("seed", range(4))
def test_suppression_against_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, scores = random_boxes(generator, 30), torch.rand(30, generator=generator)
    labels = torch.randint(2, (30,), generator=generator)
    kept: list[int] = []
    for index in sorted(range(30), key=lambda index: -scores[index].item()):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(box_iou(boxes[index, None], boxes[other, None]).item() <= 0.3 for other in rivals):
            kept.append(index)
    assert suppress(boxes, scores, labels, 0.3).tolist() == kept and 2 < len(kept) < 30


def test_suppression_of_nothing_is_nothing() -> None:
    assert suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)


def maps_of(boxes: Tensor, labels: list[int], *, size: int = 64) -> Maps:
    """What a perfect network says of one image with these boxes: each is told at the place nearest its middle."""
    side = size // STRIDE
    classes, centreness = torch.full((1, 3, side, side), -20.0), torch.full((1, 1, side, side), -20.0)
    distances = torch.ones(1, 4, side, side)
    for (left, top, right, bottom), label in zip(boxes.tolist(), labels, strict=True):
        column, row = int((left + right) / 2 // STRIDE), int((top + bottom) / 2 // STRIDE)
        x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
        classes[0, label, row, column] = centreness[0, 0, row, column] = 5.0
        distances[0, :, row, column] = torch.tensor([x - left, y - top, right - x, bottom - y])
    return Maps(classes, centreness, distances)


def test_boxes_come_back_from_what_is_said_of_them() -> None:
    boxes = torch.tensor([[4.0, 6.5, 30.0, 28.0], [31.5, 2.0, 60.0, 33.0], [10.0, 40.0, 64.0, 64.0]])
    (found,) = decode(maps_of(boxes, [0, 2, 0]), (64, 64))
    order = found.boxes[:, 0].argsort()
    assert torch.allclose(found.boxes[order], boxes[torch.tensor([0, 2, 1])], atol=1e-5)
    assert found.labels[order].tolist() == [0, 0, 2]
    assert torch.allclose(found.scores, torch.tensor(5.0).sigmoid().expand(3))
    assert len(decode(maps_of(boxes, [0, 2, 0]), (64, 64), threshold=0.999)[0].boxes) == 0


def test_boxes_are_cut_to_the_image() -> None:
    (found,) = decode(maps_of(torch.tensor([[-3.0, 2.0, 70.0, 60.0]]), [1]), (50, 61))
    assert found.boxes.tolist() == [[0.0, 2.0, 61.0, 50.0]]


def test_only_the_surest_of_a_class_stays_where_boxes_overlap() -> None:
    maps = maps_of(torch.tensor([[0.0, 0, 40, 40], [0, 0, 56, 40]]), [1, 1])  # of two places, overlapping by 0.71
    maps.classes[0, 1, 2, 2] = 6.0
    (found,) = decode(maps, (64, 64))
    assert found.boxes.tolist() == [[0.0, 0.0, 40.0, 40.0]]
    assert len(decode(maps, (64, 64), overlap=0.8)[0].boxes) == 2
    assert len(decode(maps, (64, 64), overlap=0.8, limit=1)[0].boxes) == 1


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (33, 9)])
def test_maps_cover_images_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = Detector(TINY).eval()
    with torch.no_grad():
        maps = network(torch.randn(2, 3, *size))
    height, width = -(-size[0] // STRIDE), -(-size[1] // STRIDE)
    assert [tuple(part.shape) for part in maps] == [(2, channels, height, width) for channels in (3, 1, 4)]
    assert (maps.distances > 0).all()
    points = places(height, width)
    assert points[0].tolist() == [4, 4] and points[-1].tolist() == [8 * width - 4, 8 * height - 4]
    assert len(network.detect(torch.randn(2, 3, *size), threshold=0)) == 2


def test_before_training_every_class_is_unlikely() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        chances = Detector(TINY).eval()(torch.randn(2, 3, 64, 64)).classes.sigmoid()
    assert chances.max() < 0.05


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = Detector(TINY).train()
    maps = network(torch.randn(4, 3, 64, 64))
    sum((part * torch.randn_like(part)).sum() for part in maps).backward()  # pyright: ignore[reportAttributeAccessIssue]
    dead = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert not dead


def test_what_is_no_detector_and_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="classes 0 of a detector is too small: use 1 or more"):
        DetectorConfig(classes=0)
    maps = maps_of(torch.zeros(0, 4), [])
    with pytest.raises(ValueError, match=r"threshold 1.5 is out of range"):
        decode(maps, (64, 64), threshold=1.5)
    with pytest.raises(ValueError, match="limit 0 is out of range"):
        decode(maps, (64, 64), limit=0)
