import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from genpipe.scenes import sample
from genpipe.scenes.compose import Composer
from genpipe.training.loop import Budget, Randomness, choose_accelerator, fit
from genpipe.training.segmentation import label_map, scene_segmentations, segmentation_loss
from genpipe.vision.metrics import confusion_matrix, mean_iou
from genpipe.vision.segmentation import SegmentationConfig, SegmentationUNet

CONCEPTS = ("pirate ship", "apple", "car")
SIZE = 32


def test_a_label_is_that_of_the_object_a_pixel_belongs_to() -> None:
    composer = Composer(size=SIZE)
    scenes = [sample(random.Random(seed), CONCEPTS) for seed in range(30)]
    seen = set()
    for scene, truth in zip(scenes, composer.truth(scenes)[1], strict=True):
        labels = label_map(truth, CONCEPTS)
        for y in range(0, SIZE, 5):
            for x in range(0, SIZE, 5):
                owners = [k for k in range(len(scene.objects)) if truth.masks[k, y, x]]
                expected = 1 + CONCEPTS.index(scene.objects[owners[-1]].concept) if owners else 0
                assert labels[y, x] == expected
                seen.add(expected)
    assert seen == {0, 1, 2, 3}


def test_the_loss_is_cross_entropy_of_the_pixels_that_count() -> None:
    torch.manual_seed(0)
    pixels, labels, model = torch.randn(2, 3, 4, 4), torch.randint(-2, 5, (2, 4, 4)), nn.Conv2d(3, 5, 1)
    loss = segmentation_loss(lambda randomness: (pixels, labels))(model, 0, Randomness.at(0, 0))
    logits = model(pixels)
    terms = [
        math.log(sum(math.exp(value) for value in logits[b, :, y, x].tolist())) - logits[b, label, y, x].item()
        for b in range(2)
        for y in range(4)
        for x in range(4)
        if (label := int(labels[b, y, x])) >= 0
    ]
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5) and len(terms) < 32


def test_a_small_network_learns_whose_pixels_are_whose(tmp_path: Path) -> None:
    batches = scene_segmentations(Composer(size=SIZE), CONCEPTS, 12)
    torch.manual_seed(0)
    model = fit(
        SegmentationUNet(SegmentationConfig(classes=4, width=8, levels=4)),
        segmentation_loss(batches),
        directory=tmp_path,
        budget=Budget(steps=80),
        peak_rate=5e-3,
        accelerator=choose_accelerator("cpu", "fp32"),
        average=0.9,
    )
    pixels, labels = scene_segmentations(Composer(size=SIZE), CONCEPTS, 64)(Randomness.at(1, 0))
    with torch.no_grad():
        iou = mean_iou(confusion_matrix(model(pixels).argmax(1), labels, 4))
    chance = mean_iou(confusion_matrix(torch.zeros_like(labels), labels, 4))
    assert iou > 0.5 > 2 * chance
