import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from genpipe.checkpoints.weights import skeleton
from genpipe.vision.alexnet import AlexNet, AlexNet2012
from genpipe.vision.lenet import LeNet5
from genpipe.vision.resnet import ResNet
from genpipe.vision.summary import summary


class Tied(nn.Module):
    """One convolution that runs twice, and something in between that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.relu(self.conv(x)))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (LeNet5, (1, 32, 32)),
        (AlexNet, (3, 96, 64)),
        (AlexNet2012, (3, 64, 64)),
        (partial(ResNet, 50), (3, 64, 64)),
        (Tied, (2, 9, 8)),
    ],
    ids=["LeNet-5", "AlexNet", "AlexNet 2012", "ResNet-50", "tied"],
)
def test_parameters_and_multiply_adds_are_torchs_own_count(
    kind: Callable[[], nn.Module], size: tuple[int, ...]
) -> None:
    model = skeleton(kind)
    whole = summary(model, size)
    assert whole.parameters == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model.to("meta").eval()(torch.empty(1, *size, device="meta"))
    assert whole.multiply_adds * 2 == counter.get_total_flops()
    assert whole.layers[-1].output == output.shape[1:]


def test_a_row_says_what_a_layer_does() -> None:
    layers = {layer.name: layer for layer in summary(LeNet5(), (1, 32, 32)).layers}
    c3 = layers["features.c3"]
    assert (c3.kind, c3.output, c3.parameters) == ("Conv2d", (16, 10, 10), 16 * (6 * 25 + 1))
    assert c3.multiply_adds == 16 * 10 * 10 * 6 * 25
    assert layers["features.s2"].output == (6, 14, 14) and layers["features.s2"].parameters == 0


def test_the_table_has_a_row_a_layer_and_a_total() -> None:
    lines = str(summary(LeNet5(), (1, 32, 32))).splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert lines[1].split() == ["features.c1", "Conv2d", "6×28×28", "156", "117,600"]
    assert lines[-1].split()[:2] == ["total", "61,706"]
    assert len(lines) == 2 + 12


def test_the_model_is_left_as_it_was() -> None:
    model = LeNet5()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    summary(model, (1, 32, 32))
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("kind", "size", "says"),
    [
        (LeNet5, (1, 31, 31), "at features.c5 (Conv2d) 4×4 falls"),
        (LeNet5, (1, 32, 31), "at features.c5 (Conv2d) 5×4 falls"),
        (LeNet5, (1, 9, 9), "at features.c3 (Conv2d) 2×2 falls"),
        (AlexNet, (3, 62, 62), "at features.12 (MaxPool2d) 2×2 falls"),
        (AlexNet2012, (3, 62, 62), "at features.14 (MaxPool2d) 2×2 falls"),
    ],
)
def test_an_input_that_is_too_small_is_refused_by_the_layer(
    kind: Callable[[], nn.Module], size: tuple[int, ...], says: str
) -> None:
    model = skeleton(kind)
    with pytest.raises(ValueError, match=f"is too small: {re.escape(says)} below one"):
        summary(model, size)
    smallest = (size[0], 32, 32) if isinstance(model, LeNet5) else (size[0], 63, 63)
    assert summary(model, smallest).layers
