import pytest
import torch
from torch import Tensor, nn

from genpipe.vision.scene_model import (
    CHANNELS,
    INPUT_SIDE,
    STRIDE,
    SceneModel,
    SceneOutput,
    SurestConcept,
    find_objects,
    shrink,
)


def model(trunk: str = "resnet18") -> SceneModel:
    torch.manual_seed(0)
    return SceneModel(trunk, concepts=7, colours=3, settings=5, width=8).eval()


@pytest.mark.parametrize("trunk", ["resnet18", "plain"])
def test_everything_is_seen_in_its_shape_and_learns(trunk: str) -> None:
    net = model(trunk).train()
    seen = net(torch.randn(2, 3, INPUT_SIDE, INPUT_SIDE))
    cells = INPUT_SIDE // STRIDE
    assert seen.objectness.shape == (2, cells, cells) and seen.boxes.shape == (2, cells, cells, 4)
    assert seen.cells.shape == (2, cells, cells, CHANNELS) and seen.features.shape == (2, CHANNELS)
    assert seen.settings.shape == (2, 5)
    heads = net.concepts(seen.cells).sum() + net.colours(seen.cells).sum()
    (heads + seen.objectness.sum() + seen.boxes.sum() + seen.settings.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_another_trunk_is_refused() -> None:
    with pytest.raises(ValueError, match="trunk 'vgg' is not known: use one of resnet18, plain"):
        SceneModel("vgg", concepts=2, colours=2, settings=2)


def test_boxes_begin_around_the_middle_of_their_cell() -> None:
    net = model()
    assert isinstance(net.place, nn.Conv2d) and net.place.bias is not None
    with torch.no_grad():
        net.place.weight.zero_()
        net.place.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
        boxes = net(torch.zeros(1, 3, INPUT_SIDE, INPUT_SIDE)).boxes
    x, y = 2.5 * STRIDE, 1.5 * STRIDE  # of the cell in row 1, column 2
    assert boxes[0, 1, 2].tolist() == [x - STRIDE, y - 2 * STRIDE, x + 3 * STRIDE, y + 4 * STRIDE]


def seen_of(scores: dict[tuple[int, int], float], boxes: dict[tuple[int, int], list[float]]) -> SceneOutput:
    objectness, places = torch.full((1, 6, 6), -9.0), torch.zeros(1, 6, 6, 4)
    for (row, column), score in scores.items():
        objectness[0, row, column] = torch.logit(torch.tensor(score))
        places[0, row, column] = torch.tensor(boxes[row, column])
    cells = torch.arange(36.0).reshape(1, 6, 6, 1).expand(1, 6, 6, CHANNELS)
    return SceneOutput(objectness, places, cells, torch.zeros(1, 5), torch.zeros(1, CHANNELS))


def test_of_boxes_that_overlap_the_surest_is_an_object() -> None:
    boxes = {(0, 0): [0.0, 0, 40, 40], (0, 1): [2.0, 0, 42, 40], (4, 4): [50.0, 50, 90, 90], (5, 5): [60.0, 0, 90, 30]}
    seen = seen_of({(0, 0): 0.7, (0, 1): 0.9, (4, 4): 0.8, (5, 5): 0.3}, boxes)
    net = model()
    (found,) = find_objects(net, seen)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.boxes.tolist() == [boxes[0, 1], boxes[4, 4]]
    expected = net.concepts(seen.cells[0, [0, 4], [1, 4]]).softmax(1)
    assert torch.allclose(found.concepts, expected) and found.colours.shape == (2, 4)
    assert len(find_objects(net, seen, threshold=0.2)[0].scores) == 3
    assert len(find_objects(net, seen, threshold=0.95)[0].scores) == 1  # the surest, whatever its score


def told(net: SceneModel, pixels: Tensor, there: Tensor) -> Tensor:
    """What the surest cell and those next to it say, each as far as something is `there` (6, 6); by plain loops."""
    cells, said = net(pixels[None]).cells[0], torch.zeros(7)
    row, column = divmod(int(there.argmax()), 6)
    for y in range(max(0, row - 1), min(6, row + 2)):
        for x in range(max(0, column - 1), min(6, column + 2)):
            said += there[y, x] * net.concepts(cells[y, x]).softmax(0)
    return said / said.sum()


@torch.no_grad()
def test_as_a_classifier_it_names_the_surest_object_by_the_cells_around_it() -> None:
    net, pixels = model(), torch.randn(5, 3, INPUT_SIDE, INPUT_SIDE)
    shares = SurestConcept(net)(pixels).softmax(1)
    for one, share in zip(pixels, shares, strict=True):
        assert torch.allclose(share, told(net, one, net(one[None]).objectness[0].sigmoid()), atol=1e-6)


@torch.no_grad()
def test_two_models_classify_by_the_geometric_mean_of_what_they_say() -> None:
    nets, pixels = (model(), model("plain")), torch.randn(5, 3, INPUT_SIDE, INPUT_SIDE)
    shares = SurestConcept(*nets)(pixels).softmax(1)
    for one, share in zip(pixels, shares, strict=True):
        there = torch.stack([net(one[None]).objectness[0].sigmoid() for net in nets]).mean(0)
        mean = torch.stack([told(net, one, there) for net in nets]).prod(0).sqrt()
        assert torch.allclose(share, mean / mean.sum(), atol=1e-6)


def test_shrinking_averages() -> None:
    pixels = torch.zeros(1, 3, 2 * INPUT_SIDE, 2 * INPUT_SIDE)
    pixels[..., ::2] = 1.0
    assert shrink(pixels).shape == (1, 3, INPUT_SIDE, INPUT_SIDE)
    assert (shrink(pixels)[..., 8:-8] - 0.5).abs().max() < 0.05
