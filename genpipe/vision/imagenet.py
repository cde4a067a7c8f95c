"""What is known about ImageNet-1k: its classes, and the weights that are published for it."""

from functools import cache
from importlib.resources import files

# Weight files of torchvision, by the stem of their names: the architecture and the size that images are resized to
# before 224 pixels are cropped, as its `AlexNet_Weights` and `ResNet18_Weights` … state them (version 0.29.1). They are
# at https://download.pytorch.org/models/ as pickles.
PUBLISHED: dict[str, tuple[str, int]] = {
    "alexnet-owt-7be5be79": ("alexnet", 256),
    "resnet18-f37072fd": ("resnet18", 256),
    "resnet34-b627a593": ("resnet34", 256),
    "resnet50-0676ba61": ("resnet50", 256),
    "resnet50-11ad3fa6": ("resnet50", 232),
    "resnet101-63fe2227": ("resnet101", 256),
    "resnet101-cd907fc2": ("resnet101", 232),
    "resnet152-394f9c45": ("resnet152", 256),
    "resnet152-f82ba261": ("resnet152", 232),
}


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the 1,000 classes in the order of the challenge, each with its synonyms in WordNet: 724 is "pirate, pirate ship".

    No two are the same: where WordNet has one name for two things, what it is stands behind it ("crane (bird)").
    """
    return tuple((files("genpipe.vision") / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
