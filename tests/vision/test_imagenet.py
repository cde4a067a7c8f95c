from pathlib import PurePosixPath
from typing import Any

from genpipe.vision.architectures import ARCHITECTURES
from genpipe.vision.imagenet import PUBLISHED, imagenet_classes
from scripts.evaluate.imagenet import PUBLISHED as ACCURACIES


def test_the_classes_are_in_the_challenges_order() -> None:
    classes = imagenet_classes()
    assert len(classes) == len(set(classes)) == 1000
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 388: "giant panda", 487: "cellular telephone",
             724: "pirate, pirate ship", 895: "warplane", 937: "broccoli", 999: "toilet tissue"}  # fmt: skip
    assert all(classes[index].startswith(name) for index, name in known.items())
    assert classes[134] == "crane (bird)" and classes[517] == "crane (machine)"


def test_published_weights_are_of_networks_that_are_here() -> None:
    assert {architecture for architecture, _ in PUBLISHED.values()} <= set(ARCHITECTURES)
    assert all(stem.startswith(architecture) for stem, (architecture, _) in PUBLISHED.items())


def test_published_weights_are_torchvisions(torchvision_models: Any) -> None:
    theirs = {
        PurePosixPath(weights.url).stem: (name, weights.transforms().resize_size[0])
        for name in ("alexnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
        for weights in torchvision_models.get_model_weights(name)
    }
    assert theirs == PUBLISHED


def test_published_accuracies_are_torchvisions(torchvision_models: Any) -> None:
    theirs = {}
    for architecture in {architecture for architecture, _ in PUBLISHED.values()}:
        for weights in torchvision_models.get_model_weights(architecture):
            metrics = weights.meta["_metrics"]["ImageNet-1K"]
            theirs[PurePosixPath(weights.url).stem] = (metrics["acc@1"], metrics["acc@5"])
    assert theirs == ACCURACIES
