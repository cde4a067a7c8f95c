import math
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genpipe.blocks import conv_unit
from genpipe.scenes import sample
from genpipe.scenes.compose import Composer
from genpipe.training.classifier import classification_loss, train_classifier
from genpipe.training.loop import Budget, Randomness, choose_accelerator
from genpipe.vision.metrics import top_k_error
from genpipe.vision.transfer import freeze

CONCEPTS = ("pirate ship", "cat", "car", "apple")


@cache
def composer() -> Composer:
    return Composer(size=32)


def draw_scenes(rng: random.Random, n: int) -> tuple[Tensor, Tensor]:
    """Scenes of one concept each, and which."""
    labels = [rng.randrange(len(CONCEPTS)) for _ in range(n)]
    scenes = []
    for label in labels:
        scene = sample(rng, [CONCEPTS[label]])
        while scene.kind == "place":  # shows no object
            scene = sample(rng, [CONCEPTS[label]])
        scenes.append(scene)
    return composer().render(scenes), torch.tensor(labels)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        conv_unit(3, 16, stride=2),
        conv_unit(16, 32, stride=2),
        conv_unit(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, len(CONCEPTS)),
    )


def train(directory: Path, steps: int, model: nn.Module | None = None) -> nn.Module:
    return train_classifier(
        small() if model is None else model,
        lambda randomness: draw_scenes(randomness.choices, 24),
        directory=directory,
        budget=Budget(steps=steps),
        accelerator=choose_accelerator("cpu", "fp32"),
        peak_rate=4e-3,
        average=0.95,
    )


def test_a_small_network_learns_four_concepts_in_seconds(tmp_path: Path) -> None:
    model = train(tmp_path, 150)
    pixels, labels = draw_scenes(random.Random("unseen"), 200)
    assert not model.training
    with torch.no_grad():
        error, untrained = (top_k_error(net(pixels), labels) for net in (model, small().eval()))
    assert error < 0.2 and untrained > 0.6


def test_a_frozen_layer_stays_and_the_others_learn(tmp_path: Path) -> None:
    before = small().state_dict()
    after = train(tmp_path, 3, freeze(small(), ["0", "1"])).state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in after if not name.startswith(("0.", "1."))}


def test_the_loss_is_cross_entropy_with_the_labels_smoothed() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    labels = torch.tensor([0, 1])
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    for smoothing in (0.0, 0.3):
        loss = classification_loss(lambda randomness: (logits, labels), smoothing=smoothing)(
            model, 0, Randomness.at(0, 0)
        )
        expected = 0.0
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            logs = [value - math.log(sum(map(math.exp, row))) for value in row]
            target = [smoothing / 3 + (1 - smoothing) * (index == label) for index in range(3)]
            expected -= sum(t * log for t, log in zip(target, logs, strict=True)) / 2
        assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_a_smoothing_that_leaves_no_label_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"a label smoothing of .* is out of range"):
        classification_loss(lambda randomness: (torch.zeros(1), torch.zeros(1)), smoothing=smoothing)
