import pytest
import torch
from torch import nn

from genpipe.vision.architectures import ARCHITECTURES, build, find_head


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_builds_a_network_with_a_head_of_its_classes(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 7)
        size = (1, 32, 32) if name == "lenet5" else (3, 224, 224)
        assert model(torch.empty(2, *size)).shape == (2, 7)
    head, layer = find_head(model)
    assert model.get_submodule(head) is layer and layer.out_features == 7


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model 'resnet20' is not known: use one of lenet5, alexnet, .*resnet152"):
        build("resnet20")
    with pytest.raises(ValueError, match="a classifier of 1 classes"):
        build("resnet18", 1)
    with pytest.raises(ValueError, match="Conv2d has no linear layer"):
        find_head(nn.Conv2d(3, 3, 1))
