"""The judges that ship with genpipe."""

import random

import pytest
import torch

from genpipe.embedded import JUDGES
from genpipe.images import to_pil
from genpipe.judge import choose_judge, score
from genpipe.judge.evaluation import measure
from genpipe.judge.scene_judge import Judge
from genpipe.judge.scene_segmentation import CATEGORIES, Segmentation
from genpipe.scenes import Scene, canonical, caption, names, sample
from genpipe.scenes.compose import Composer
from genpipe.training.judge import category_maps
from genpipe.vision.metrics import confusion_matrix, mean_iou


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Unseen ones, a third of them of combinations that no generator is trained on."""
    rng = random.Random("unseen by any training")
    return [sample(rng, held=index % 3 == 0) for index in range(90)]


def test_they_are_small_and_safe() -> None:
    files = list(JUDGES.iterdir())
    assert {path.suffix for path in files} <= {".safetensors", ".md"}
    assert sum(path.stat().st_size for path in files) <= 15e6


@pytest.mark.parametrize("file", ["model", "second", "critic"])
def test_they_know_unseen_scenes(file: str, scenes: list[Scene]) -> None:
    judge = Judge.load(JUDGES / f"{file}.safetensors", device="cpu")
    assert judge.concepts == names()
    tallies = measure(judge, to_pil(Composer().render(scenes)), scenes).tallies
    assert tallies["object_top1"].share >= 0.85 and tallies["object_top5"].share >= 0.92
    assert tallies["setting"].share >= 0.95 and tallies["satisfied"].share >= 0.8


def test_the_segmentation_finds_what_is_where(scenes: list[Scene]) -> None:
    """It was trained on settings without far things, some of which it takes for things."""
    judge = Judge.load(JUDGES / "model.safetensors", device="cpu")
    segmentation = Segmentation.load(JUDGES / "segmentation.safetensors", judge)
    composer = Composer()
    pixels, truths = composer.truth(scenes)
    true = category_maps(truths, composer.size).long()
    assert mean_iou(confusion_matrix(segmentation(to_pil(pixels)), true, len(CATEGORIES))) >= 0.7


def test_an_image_is_scored_highest_for_its_own_prompt(scenes: list[Scene]) -> None:
    shown = [canonical(name) for name in ("pirate ship", "cat", "castle")]
    images = to_pil(Composer().render(shown))
    judge = choose_judge(device="cpu")
    for language in ("en", "ru"):
        prompts = [caption(scene, language=language) for scene in shown]
        totals = torch.tensor([[score(image, prompt, judge=judge).total for prompt in prompts] for image in images])
        assert totals.argmax(1).tolist() == [0, 1, 2] and totals.diagonal().min() > 0.5
