from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genpipe.blocks import conv_unit
from genpipe.vision.architectures import ARCHITECTURES, build, find_head
from genpipe.vision.lenet import LeNet5
from genpipe.vision.resnet import ResNet
from genpipe.vision.transfer import features, freeze, replace_head


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_unit(3, 4, stride=2), conv_unit(4, 6, stride=2))
        self.fc = nn.Linear(6, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(pixels).mean(dim=(2, 3)))


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


def step(model: nn.Module) -> dict[str, bool]:
    """Which tensors of the state dict one training step changes."""
    before = deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    logits = model.train()(torch.randn(6, 3, 16, 16, generator=generator))
    F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return {name: not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_classifiers_head_can_be_replaced(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
        head, old = find_head(model)
        others = {key: id(value) for key, value in model.named_parameters() if not key.startswith(f"{head}.")}
        assert replace_head(model, 3) is model
    assert find_head(model)[0] == head and find_head(model)[1].out_features == 3
    assert find_head(model)[1].in_features == old.in_features
    assert others.items() <= {key: id(value) for key, value in model.named_parameters()}.items()


def test_a_new_head_computes_from_the_same_features(small: Small) -> None:
    replace_head(small, 2).double()
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert small(pixels).shape == (3, 2)
    with pytest.raises(ValueError, match="a classifier of 1 classes"):
        replace_head(small, 1)


def test_training_changes_everything_without_freezing(small: Small) -> None:
    # A bias of a convolution would not change: the norm takes it away. There is none.
    assert all(step(small).values())


def test_freezing_leaves_only_the_head_to_training(small: Small) -> None:
    changed = step(freeze(small))
    assert {name for name, moved in changed.items() if moved} == {"fc.weight", "fc.bias"}


def test_layers_are_frozen_with_all_that_is_in_them(small: Small) -> None:
    changed = step(freeze(small, ["features.0"]))
    assert all(moved != name.startswith("features.0.") for name, moved in changed.items())


def test_a_copy_of_a_frozen_model_is_frozen(small: Small) -> None:
    copied = deepcopy(freeze(small))
    assert {name for name, moved in step(copied).items() if moved} == {"fc.weight", "fc.bias"}


def test_features_are_what_layers_put_out() -> None:
    torch.manual_seed(0)
    model = ResNet(18, 4).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = features(model, ["layer4", "bn1", "layer1", "fc"])(pixels)
        assert list(found) == ["layer4", "bn1", "layer1", "fc"]
        stem = model.bn1(model.conv1(pixels))
        assert torch.equal(found["bn1"], stem) and stem.min() < 0  # though a ReLU follows in place
        first = model.layer1(model.maxpool(stem.relu()))
        assert torch.equal(found["layer1"], first)
        assert torch.equal(found["layer4"], model.layer4(model.layer3(model.layer2(first))))
        assert torch.equal(found["fc"], model(pixels))
    assert found["layer4"].shape == (2, 512, 2, 2)
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_reach_the_model_through_its_features(small: Small) -> None:
    network = features(small, ["features"])
    network(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))["features"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.model.get_submodule("features").parameters())
    assert {id(p) for p in network.parameters()} == {id(p) for p in small.parameters()}


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LeNet5 has no layer 'features.c2': try .*features.c\d"):
        features(LeNet5(), ["features.c2"])
    with pytest.raises(ValueError, match="LeNet5 has no layer 'zzz': try features, avgpool, classifier"):
        freeze(LeNet5(), ["zzz"])
    with pytest.raises(ValueError, match="no layers given"):
        features(LeNet5(), [])
