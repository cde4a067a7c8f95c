"""The classifiers by name, and the layer that each of them ends in."""

from collections.abc import Callable
from functools import partial

from torch import nn

from genpipe.messages import quoted
from genpipe.vision.alexnet import AlexNet, AlexNet2012
from genpipe.vision.lenet import LeNet5
from genpipe.vision.resnet import DEPTHS, ResNet

# Each is called with the number of classes.
ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "lenet5": LeNet5,
    "alexnet": AlexNet,
    "alexnet2012": AlexNet2012,
    **{f"resnet{depth}": partial(ResNet, depth) for depth in DEPTHS},
    # A half and a quarter as wide: 2.8 and 0.7 million parameters besides the head, for small images of few kinds.
    **{f"resnet18w{width}": partial(ResNet, 18, width=width) for width in (32, 16)},
}


def build(architecture: str, classes: int = 1000) -> nn.Module:
    """Build a network of this name with random weights.

    Raises:
        ValueError: there is none, or it is asked for fewer than two classes.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"model {quoted(architecture)} is not known: use one of {', '.join(ARCHITECTURES)}")
    if classes < 2:
        raise ValueError(f"a classifier of {classes} classes has nothing to choose: use 2 or more")
    return ARCHITECTURES[architecture](classes)


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Find the layer that gives the logits, the last linear one: its name and the module.

    Raises:
        ValueError: the model has none.
    """
    heads = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no linear layer, so it has no head")
    return heads[-1]
