from pathlib import Path

import pytest
import torch

from genpipe.images import to_pil
from genpipe.scenes import canonical
from genpipe.scenes.compose import Composer
from genpipe.vision.judge import Judge
from genpipe.vision.scene_model import ResNetTrunk, SceneModel
from genpipe.vision.scene_segmentation import Segmentation, Segmenter

CLASSES = ("background", "vehicle", "animal")


def judge_of(trunk: str) -> Judge:
    return Judge(SceneModel(trunk, concepts=3, colours=2, settings=2, width=8))


def test_a_saved_segmentation_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = judge_of("resnet18")
    assert isinstance(judge.model.trunk, ResNetTrunk)
    network = Segmentation(Segmenter(judge.model.trunk, len(CLASSES)), CLASSES)
    images = to_pil(Composer().render([canonical("cat"), canonical("ship")]))
    maps = network(images, size=64)
    assert maps.shape == (2, 64, 64) and 0 <= maps.min() <= maps.max() < len(CLASSES)
    network.save(tmp_path / "segmentation.safetensors")
    again = Segmentation.load(tmp_path / "segmentation.safetensors", judge)
    assert again.classes == CLASSES and (again(images, size=64) == maps).float().mean() > 0.97  # fp16 on the disk
    with pytest.raises(ValueError, match="a judge with the trunk plain has no maps to segment by"):
        Segmentation.load(tmp_path / "segmentation.safetensors", judge_of("plain"))
    judge.save(tmp_path / "judge.safetensors")
    with pytest.raises(ValueError, match=r"judge.safetensors is no segmentation of scenes"):
        Segmentation.load(tmp_path / "judge.safetensors", judge)
