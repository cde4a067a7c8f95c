"""The scripts that train and use the judges, run for real with judges that know nothing."""

import importlib
import json
import math
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from genpipe.embedded import JUDGES
from genpipe.judge import Score, Unscored
from genpipe.judge.scene_judge import Judge
from genpipe.judge.scene_segmentation import MaskHead, Segmentation
from genpipe.scenes import COLOURS, SETTINGS, canonical, held_out, names, sample
from genpipe.vision.scene_model import SceneModel
from scripts.evaluate.copies import copies
from scripts.evaluate.diversity import diversity
from scripts.evaluate.held_out import render

POOL = ("pirate ship", "cat", "castle", "apple", "car", "owl")


@pytest.fixture(scope="module")
def evaluate() -> ModuleType:
    return importlib.import_module("scripts.evaluate.embedded")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of judges of random weights."""
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    for file, trunk in (("second", "plain"), ("critic", "resnet18"), ("model", "resnet18")):
        counts = {"concepts": len(names()), "colours": len(COLOURS), "settings": len(SETTINGS)}
        judge = Judge(SceneModel(trunk, **counts, width=8))
        judge.save(folder / f"{file}.safetensors")
    Segmentation(MaskHead(judge.model.trunk), judge).save(folder / "segmentation.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore:the prompt is cut")
def test_every_part_gives_its_figures(
    evaluate: ModuleType, judges: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [
        "--device",
        "cpu",
        "--judges",
        str(judges),
        "--images",
        "8",
        "--seeds",
        "2",
        "--things",
        "3",
        "--prompts",
        "2",
        "--best-of",
        "2",
        "--unseen",
        "6",
    ]
    evaluate.main(["--model", str(tiny_checkpoint), *few, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(report) == {"model", "concepts", *evaluate.PARTS} and report["concepts"] == len(names())
    images = report["images"]
    assert images["images"] == 8 and images["kinds"] == {"setting": 2, "colour": 2, "pair": 2, "count": 2}
    wanted = {"object_top1_error", "object_top5_error", "setting", "colour", "pair", "count", "satisfied"}
    assert wanted <= set(images["generated"]) and wanted <= set(images["drawn"])
    assert all(0 <= share <= 1 for share in images["generated"].values())
    assert images["frechet_distance"] > 0 and 0 <= images["copies"]["copies"] <= 1
    assert 0 < report["vae"]["psnr_db"] < 30 and 0 <= report["judge"]["segmentation_mean_iou"] <= 1
    assert set(report["best-of"]) == {
        *("prompts", "best_of", "satisfied_one", "satisfied_best", "satisfied_drawn", "share_of_missing_made_good")
    }
    diverse = report["diversity"]
    assert diverse["prompts"] == 2 and diverse["seeds"] == 8
    assert diverse["ratio"] == pytest.approx(diverse["generated_distance"] / diverse["drawn_distance"])
    assert diverse["drawn_distance"] > 0
    assert set(diverse["object_top1_error_by_kind"]) <= set(diverse["ratio_by_kind"])
    assert report["cost"]["gflop_per_image"] > 0 and report["cost"]["weights_mb"] > 0.1
    each = report["alone"]
    assert (each["things"], each["seeds"]) == (3, 2) and set(each["concept_accuracy"]) == set(names()[:3])
    wrong = 1 - sum(each["concept_accuracy"].values()) / 3
    assert each["object_top1_error"] == pytest.approx(wrong) and 0 <= each["object_top5_error"] <= wrong
    assert set(filter(None, each["not_drawn"].split(", "))) == {
        name for name, share in each["concept_accuracy"].items() if share < 0.5
    }
    del report["best-of"]
    table = evaluate.table(report)
    assert "| object_top1_error | ≤ 6 % | ≤ 3 % | " in table and "\ncost:\n- weights_mb: " in table
    assert "best-of" not in table


def test_the_core_alone_can_be_measured(
    evaluate: ModuleType, judges: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--device", "cpu", "--judges", str(judges), "--parts", "alone", "--things", "2", "--seeds", "1", "--json"]
    evaluate.main(["--model", str(tiny_checkpoint), "--core", *few])
    report = json.loads(capsys.readouterr().out)
    assert report["concepts"] == len(names(core=True)) < len(names()) and report["alone"]["things"] == 2


def test_images_without_things_have_no_diversity_and_all_things_wrong() -> None:
    class Blank:
        def __call__(self, prompts: list[str], **_: Any) -> list[Image.Image]:
            return [Image.new("RGB", (128, 128), "grey")] * len(prompts)

        def defaults(self) -> dict[str, int]:
            return {"height": 128}

    judge, pool = Judge.load(JUDGES / "model.safetensors", device="cpu"), names(core=True)
    found = diversity(Blank(), judge, pool, 6)  # pyright: ignore[reportArgumentType]
    assert found["ratio"] == pytest.approx(0, abs=1e-3) and found["drawn_distance"] > 1
    errors = found["object_top1_error_by_kind"].values()
    assert errors and all(error["generated"] > 0.8 and error["drawn"] < 0.5 for error in errors)


def test_held_out_scenes_are_held_out_and_of_every_kind(evaluate: ModuleType) -> None:
    scenes = evaluate.held_out_scenes(random.Random(0), POOL, 40)
    assert [scene.kind for scene in scenes] == [kind for kind in evaluate.COMBINATIONS for _ in range(10)]
    assert all(held_out(scene) for scene in scenes)
    assert {o.concept for scene in scenes for o in scene.objects} <= set(POOL)
    with pytest.raises(ValueError, match="the 0 concepts of this model have no held-out combination"):
        evaluate.held_out_scenes(random.Random(0), (), 4)


def test_training_images_are_copies_and_other_scenes_are_not() -> None:
    known = [canonical(name) for name in POOL]
    found = copies(render(known, 64), known, POOL, 64)
    assert found["copies"] == found["nearest_shows_the_same_concept"] == 1
    assert found["median_distance_to_nearest"] == 0 < found["distance_of_a_copy"]
    rng = random.Random(0)
    others = [sample(rng, POOL, held=True) for _ in range(20)]
    assert copies(render(others, 64), others, POOL, 64)["copies"] < 0.2


def test_how_far_one_language_is_behind_the_other(evaluate: ModuleType) -> None:
    english = {"setting": 0.9, "object_top1_error": 0.1, "colour": 0.5}
    assert evaluate.behind({"setting": 0.88, "object_top1_error": 0.15, "colour": 0.6}, english) == pytest.approx(5)
    assert evaluate.behind({"setting": 0.95, "object_top1_error": 0.05, "colour": 0.6}, english) == pytest.approx(-5)


def test_of_each_group_the_best_is_chosen(evaluate: ModuleType) -> None:
    images = [Image.new("RGB", (8, 8), (shade,) * 3) for shade in range(6)]
    scores = [Score("cat", total) for total in (0.1, 0.9, 0.3, 0.2, 0.2)] + [Unscored("cat", "no")]
    assert evaluate.chosen(images, scores, 3) == [images[1], images[3]]


def test_what_is_made_good_is_a_share_of_what_one_draw_lacks(evaluate: ModuleType) -> None:
    assert evaluate.made_good(one=0.5, best=0.8, drawn=0.9) == pytest.approx(0.75)
    assert evaluate.made_good(one=0.25, best=1.0, drawn=1.0) == 1
    assert math.isnan(evaluate.made_good(one=0.9, best=0.9, drawn=0.9))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "0"], "--images 0 is too few: use 1 or more"),
        (["--parts", "all"], "invalid choice: 'all'"),
        (["--model", "nowhere/at/all", "--device", "cpu"], "nowhere/at/all"),
    ],
)
def test_mistakes_are_one_line(
    evaluate: ModuleType, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        evaluate.main(arguments)
    assert says in (capsys.readouterr().err if error.value.code == 2 else str(error.value))


def test_the_judges_are_trained_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("scripts.train.judge")
    module.main(["--out", str(tmp_path), "--minutes", "0.001", "--pool", "8", "--unseen", "8", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert printed.count("object_top1_error") == 2 and printed.count("mean IoU") == 1
    judge = Judge.load(tmp_path / "model.safetensors", device="cpu")
    assert judge.model.architecture == "resnet18" and judge.concepts == names()
    assert Judge.load(tmp_path / "second.safetensors", device="cpu").model.architecture == "plain"
    Segmentation.load(tmp_path / "segmentation.safetensors", judge)
