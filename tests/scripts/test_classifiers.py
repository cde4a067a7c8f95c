"""The scripts that measure classifiers, on very little."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genpipe.embedded import JUDGES
from genpipe.judge.scene_judge import Judge
from genpipe.vision.classify import classify
from genpipe.vision.imagenet import PUBLISHED, imagenet_classes
from genpipe.vision.lenet import LeNet5
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.resnet import ResNet
from genpipe.vision.weights import Classifier, save_classifier


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """An image for each of 1,000 classes."""
    rng = np.random.default_rng(0)
    for index in range(1000):
        folder = tmp_path / "val" / f"n{index:08}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "a.png")
    return tmp_path / "val"


def test_imagenet_is_evaluated_as_classify_says(imagenet: Path, tmp_path: Path, capsys) -> None:
    module = importlib.import_module("scripts.evaluate.imagenet")
    torch.manual_seed(0)
    settings = Preprocess(32, 32, (0.5,), (0.25,))
    save_classifier(Classifier(LeNet5(1000), "lenet5", imagenet_classes(), settings), tmp_path / "net.safetensors")
    (imagenet / "n00000003" / "bad.png").write_text("no image")
    arguments = [str(imagenet), str(tmp_path / "net.safetensors"), "--device", "cpu"]
    module.main(arguments)
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out.splitlines()[-1])
    predictions = classify(sorted(imagenet.rglob("a.png")), weights=tmp_path / "net.safetensors", device="cpu")
    ranks = [[label.index for label in each.labels] for each in predictions]
    top1 = sum(found[0] == index for index, found in enumerate(ranks)) / 10
    top5 = sum(index in found for index, found in enumerate(ranks)) / 10
    assert (row["images"], row["top1"], row["top5"]) == (1000, pytest.approx(top1), pytest.approx(top5)) and top5 > 0
    assert row["published_top1"] is None and "bad.png is not an image" in captured.err
    assert module.PUBLISHED.keys() == PUBLISHED.keys()
    (imagenet / "n00000003" / "a.png").unlink()
    (imagenet / "n00000003" / "bad.png").unlink()
    with pytest.raises(SystemExit, match="n00000003 holds no images"):
        module.main(arguments)
    (imagenet / "n00000003").rmdir()
    with pytest.raises(SystemExit, match="holds 999 folders, not one for each"):
        module.main(arguments)


def test_hand_crafted_features_tell_a_few_concepts_apart() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    module = importlib.import_module("scripts.evaluate.classifiers")
    concepts = ("pirate ship", "apple", "car", "cat", "castle", "rocket")
    training, unseen = module.draw(concepts, 10, "a"), module.draw(concepts, 6, "b")
    assert training.labels.tolist() == [i // 10 for i in range(60)] and training.pixels.shape == (60, 3, 64, 64)
    result = module.svm(training, unseen)
    assert result.top1_error < 0.4 and result.parameters == 6 * (1764 + 1) and result.images == 60
    small = module.grey(training)
    assert small.pixels.shape == (60, 1, 32, 32)
    block = training.pixels[5, :, 10:12, 20:22].float().mean(dim=(1, 2))
    assert abs(small.pixels[5, 0, 5, 10].item() - (block * torch.tensor([0.299, 0.587, 0.114])).sum().item()) <= 0.51
    assert len(module.table([result]).splitlines()) == 2


def test_what_is_transferred_is_what_was_learned_under_a_fresh_head(tmp_path: Path) -> None:
    module = importlib.import_module("scripts.evaluate.classifiers")
    learned = Judge.load(JUDGES / "model.safetensors", device="cpu").model.trunk.get_submodule("resnet").state_dict()
    name, network = module.starting_point(None, 7, False)
    state = network.state_dict()
    assert name == "ResNet-18, half as wide, from the judge" and state.pop("fc.weight").shape == (7, 256)
    assert state.pop("fc.bias").shape == (7,)
    assert state.keys() == learned.keys() and all(torch.equal(state[key], learned[key]) for key in learned)
    torch.manual_seed(0)
    mine = ResNet(18, 3)
    save_classifier(Classifier(mine, "resnet18", ("a", "b", "c"), Preprocess()), tmp_path / "mine.safetensors")
    name, network = module.starting_point(str(tmp_path / "mine.safetensors"), 7, False)
    assert name == "ResNet-18, from mine" and network.fc.out_features == 7
    assert torch.equal(network.layer4[1].conv2.weight, mine.state_dict()["layer4.1.conv2.weight"])


def test_the_benchmarks_twin_has_the_same_weights() -> None:
    module = importlib.import_module("scripts.benchmark.classifiers")
    torch.manual_seed(0)
    ours = ResNet(50, 7).eval()
    for norm in ours.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.weight, 0.5)
    twin = module.transformers_twin(ours)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (twin(pixels).logits - ours(pixels)).abs().max() <= 1e-4
    first, second = torch.eye(8)[:2] + torch.arange(8) / 100, torch.arange(8).float().expand(2, 8) / 100
    assert module.top_agreement(first, second) == pytest.approx(0.8)  # {0, 4 … 7} and {3 … 7}, {1, …} and {3 … 7}
