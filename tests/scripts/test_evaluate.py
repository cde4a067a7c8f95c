"""The scripts that train and use the judges, run for real with judges that know nothing."""

import importlib
import json
import random
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from genpipe.judge.scene_judge import Judge
from genpipe.judge.scene_segmentation import MaskHead, Segmentation
from genpipe.scenes import COLOURS, SETTINGS, canonical, held_out, names, sample
from genpipe.training.judge import ScenePool
from genpipe.vision.scene_model import SceneModel

POOL = ("pirate ship", "cat", "castle", "apple", "car", "owl")


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The script, with judges of random weights."""
    folder, module = tmp_path_factory.mktemp("judges"), importlib.import_module("scripts.evaluate.embedded")
    torch.manual_seed(0)
    for file, trunk in (("second", "plain"), ("model", "resnet18")):
        counts = {"concepts": len(names()), "colours": len(COLOURS), "settings": len(SETTINGS)}
        judge = Judge(SceneModel(trunk, **counts, width=8))
        judge.save(folder / f"{file}.safetensors")
    Segmentation(MaskHead(judge.model.trunk), judge).save(folder / "segmentation.safetensors")
    setattr(module, "JUDGES", folder)  # noqa: B010
    return module


@pytest.mark.filterwarnings("ignore:the prompt is cut")
def test_every_part_gives_its_figures(
    evaluate: ModuleType, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--pictures", "8", "--seeds", "2", "--prompts", "2", "--best-of", "2", "--unseen", "6"]
    evaluate.main(["--model", str(tiny_checkpoint), *few, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(report) == {"model", "concepts", *evaluate.PARTS} and report["concepts"] == len(names())
    pictures = report["pictures"]
    assert pictures["pictures"] == 8 and pictures["kinds"] == {"setting": 2, "colour": 2, "pair": 2, "count": 2}
    wanted = {"object_top1_error", "object_top5_error", "setting", "colour", "pair", "count", "satisfied"}
    assert wanted <= set(pictures["generated"]) and wanted <= set(pictures["drawn"])
    assert all(0 <= share <= 1 for share in pictures["generated"].values())
    assert pictures["frechet_distance"] > 0 and 0 <= pictures["copies"]["copies"] <= 1
    assert 0 < report["vae"]["psnr_db"] < 30 and 0 <= report["judge"]["segmentation_mean_iou"] <= 1
    assert set(report["best-of"]) == {
        *("prompts", "best_of", "satisfied_one", "satisfied_best", "satisfied_drawn", "share_of_missing_made_good")
    }
    assert report["cost"]["gflop_a_picture"] > 0 and report["cost"]["weights_mb"] > 0.1
    del report["best-of"]
    table = evaluate.table(report)
    assert "| object_top1_error | ≤ 20 % | ≤ 5 % | " in table and "\ncost:\n- weights_mb: " in table
    assert "best-of" not in table


def test_held_out_scenes_are_held_out_and_of_every_kind(evaluate: ModuleType) -> None:
    scenes = evaluate.held_out_scenes(random.Random(0), POOL, 40)
    assert [scene.kind for scene in scenes] == [kind for kind in evaluate.COMBINATIONS for _ in range(10)]
    assert all(held_out(scene) for scene in scenes)
    assert {o.concept for scene in scenes for o in scene.objects} <= set(POOL)
    with pytest.raises(ValueError, match="the 0 concepts of this model have no held-out combination"):
        evaluate.held_out_scenes(random.Random(0), (), 4)


def test_training_pictures_are_copies_and_other_scenes_are_not(evaluate: ModuleType) -> None:
    known = [canonical(name) for name in POOL]
    found = evaluate.copies(evaluate.render(known, 64), known, POOL, 64)
    assert found["copies"] == found["nearest_shows_the_same_concept"] == 1
    assert found["median_distance_to_nearest"] == 0 < found["distance_of_a_copy"]
    rng = random.Random(0)
    others = [sample(rng, POOL, held=True) for _ in range(20)]
    assert evaluate.copies(evaluate.render(others, 64), others, POOL, 64)["copies"] < 0.2


def test_how_far_one_language_is_behind_the_other(evaluate: ModuleType) -> None:
    english = {"setting": 0.9, "object_top1_error": 0.1, "colour": 0.5}
    assert evaluate.behind({"setting": 0.88, "object_top1_error": 0.15, "colour": 0.6}, english) == pytest.approx(5)
    assert evaluate.behind({"setting": 0.95, "object_top1_error": 0.05, "colour": 0.6}, english) == pytest.approx(-5)


class Oracle:
    """Gives every picture its brightness as score."""

    def scores(self, images: Any, prompts: Any) -> Any:
        return [type("Score", (), {"total": image.getpixel((0, 0))[0]}) for image in images]


def test_the_best_is_chosen_by_the_first_judge_and_measured_by_the_second(
    evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four pictures of a prompt one is right and bright: one draw is right for a quarter of the prompts."""
    shades = [200, 100, 100, 100]
    monkeypatch.setattr(
        evaluate,
        "draw",
        lambda _, prompts, *__: [
            Image.new("RGB", (8, 8), (shades[(i + i // 4) % 4],) * 3) for i in range(len(prompts))
        ],
    )
    monkeypatch.setattr(evaluate, "render", lambda scenes, _: [Image.new("RGB", (8, 8), "white") for _ in scenes])

    def measure(_: object, images: list[Image.Image], __: object) -> Any:
        share = sum(image.getpixel((0, 0))[0] >= 200 for image in images) / len(images)  # pyright: ignore
        return type("Measured", (), {"tallies": {"satisfied": type("Tally", (), {"share": share})}})

    monkeypatch.setattr(evaluate, "measure", measure)
    pipeline = type("Pipeline", (), {"defaults": lambda self: {"height": 8}})()
    found = evaluate.best_of(pipeline, Oracle(), None, POOL, 8, 4)
    assert (found["satisfied_one"], found["satisfied_best"], found["satisfied_drawn"]) == (0.25, 1, 1)
    assert found["share_of_missing_made_good"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pictures", "0"], "--pictures 0 is too few: use 1 or more"),
        (["--parts", "all"], "invalid choice: 'all'"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_mistakes_are_one_line(
    evaluate: ModuleType, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        evaluate.main(arguments)
    assert says in (capsys.readouterr().err if error.value.code == 2 else str(error.value))


def test_the_judges_are_trained_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("scripts.train.judge")
    monkeypatch.setattr(module, "choose_accelerator", lambda: Accelerator(cpu=True))
    monkeypatch.setattr(module, "ScenePool", partial(ScenePool, initial=8, fresh=0))
    monkeypatch.setattr(module, "UNSEEN", 8)
    module.main(["--out", str(tmp_path), "--minutes", "0.001"])
    printed = capsys.readouterr().out
    assert printed.count("object_top1_error") == 2 and printed.count("mean IoU") == 1
    judge = Judge.load(tmp_path / "model.safetensors", device="cpu")
    assert judge.model.architecture == "resnet18" and judge.concepts == names()
    assert Judge.load(tmp_path / "second.safetensors").model.architecture == "plain"
    Segmentation.load(tmp_path / "segmentation.safetensors", judge)
