from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from genpipe.images import to_pil
from genpipe.judge.scene_judge import Judge, Observation
from genpipe.judge.scene_segmentation import CATEGORIES, MaskHead, Segmentation
from genpipe.scenes import canonical, concepts, names
from genpipe.scenes.compose import Composer
from genpipe.vision.scene_model import CHANNELS, INPUT_SIDE, FoundObjects, SceneModel


def judge_of(trunk: str) -> Judge:
    torch.manual_seed(0)
    return Judge(SceneModel(trunk, concepts=len(names()), colours=12, settings=21, width=8))


class Everything(MaskHead):
    """Takes the right three quarters of every image for things."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = torch.ones(len(pixels), 1, INPUT_SIDE // 2, INPUT_SIDE // 2)
        logits[..., : INPUT_SIDE // 8] = -1
        return logits


class Certain(Judge):
    """Sees the same objects in every image."""

    objects: FoundObjects

    def observe(self, images: Sequence[Image.Image]) -> list[Observation]:
        return [Observation(self.objects, torch.zeros(21), torch.zeros(CHANNELS)) for _ in images]


def test_a_pixel_of_a_mask_is_what_the_nearest_box_holds() -> None:
    judge = Certain(judge_of("resnet18").model)
    kinds = torch.zeros(3, len(names()))
    for row, name in enumerate(("cat", "ship", "castle")):
        kinds[row, names().index(name)] = 1
    boxes = torch.tensor([[0.0, 0, 40, 40], [70, 60, 90, 90], [0, 60, 96, 96]])
    judge.objects = FoundObjects(torch.tensor([0.9, 0.8, 0.1]), boxes, kinds, torch.zeros(3, 13))  # the castle is faint
    (found,) = Segmentation(Everything(judge.model.trunk), judge)(to_pil(torch.zeros(1, 3, 32, 32)), size=INPUT_SIDE)
    for y in range(4, INPUT_SIDE, 8):
        for x in range(4, INPUT_SIDE, 8):
            distances = [
                max(left - x, x - right, 0) + max(top - y, y - bottom, 0)
                for left, top, right, bottom in boxes[:2].tolist()
            ]
            name = ("cat", "ship")[distances[1] < distances[0]]
            expected = CATEGORIES.index(concepts()[name].category) if x >= INPUT_SIDE // 4 else 0
            # On the very line between two boxes either may have it.
            assert found[y, x] == expected or distances[0] == distances[1] or abs(distances[0] - distances[1]) <= 1


def test_it_is_no_part_of_the_judge(tmp_path: Path) -> None:
    judge = judge_of("resnet18")
    head = MaskHead(judge.model.trunk)
    own = {id(parameter) for parameter in head.parameters()}
    assert own and own.isdisjoint(map(id, judge.model.parameters()))
    head.train()
    head(torch.randn(2, 3, INPUT_SIDE, INPUT_SIDE)).sum().backward()
    assert all(parameter.grad is None for parameter in judge.model.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in head.parameters())
    norms = [module for module in judge.model.trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(not norm.training and norm.num_batches_tracked == 0 for norm in norms)


def test_a_saved_segmentation_says_the_same(tmp_path: Path) -> None:
    judge = judge_of("resnet18")
    segmentation = Segmentation(MaskHead(judge.model.trunk), judge)
    images = to_pil(Composer().render([canonical("cat"), canonical("ship")]))
    maps = segmentation(images, size=64)
    assert maps.shape == (2, 64, 64) and 0 <= maps.min() <= maps.max() < len(CATEGORIES)
    segmentation.save(tmp_path / "segmentation.safetensors")
    again = Segmentation.load(tmp_path / "segmentation.safetensors", judge)
    assert (again(images, size=64) == maps).float().mean() > 0.97  # fp16 on the disk
    with pytest.raises(ValueError, match="a PlainTrunk has no finer maps to segment by"):
        Segmentation.load(tmp_path / "segmentation.safetensors", judge_of("plain"))
    judge.save(tmp_path / "judge.safetensors")
    with pytest.raises(ValueError, match=r"judge.safetensors is no segmentation of scenes"):
        Segmentation.load(tmp_path / "judge.safetensors", judge)
