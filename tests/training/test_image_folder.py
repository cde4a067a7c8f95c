"""A person's own folder to a classifier, in Python and by the command."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.cli import main
from genpipe.training.image_folder import BEST, augment, read_image_folder, train_on_folder
from genpipe.training.loop import Budget, choose_accelerator
from genpipe.vision.architectures import build
from genpipe.vision.classify import classify
from genpipe.vision.lenet import LeNet5
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.weights import Classifier, load_classifier, save_classifier

SMALL = Preprocess(36, 32, (0.5,), (0.5,))


def striped(path: Path, across: bool, rng: random.Random) -> None:
    """An image of 40×48 with stripes across or along, anywhere."""
    lines = (np.arange(48) + rng.randrange(8)) // 4 % 2 * 200 + rng.randrange(40)
    levels = np.broadcast_to(lines[:, None] if across else lines[None, :40], (48, 40)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).convert("RGB").save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = random.Random(0)
    for name in ("across", "вдоль"):
        for index in range(20):
            striped(tmp_path / "stripes" / name / f"{index:02}.png", name == "across", rng)
    return tmp_path / "stripes"


def train(folder: Path, out: Path, steps: int = 40, **settings: Any) -> Classifier:
    settings = {"architecture": "lenet5", "batch": 8, **settings}
    return train_on_folder(
        folder, out, budget=Budget(steps=steps), accelerator=choose_accelerator("cpu", "fp32"), **settings
    )


def test_a_folder_is_its_classes_and_one_in_ten_is_held_out(folder: Path) -> None:
    read = read_image_folder(folder, SMALL)
    assert read.classes == ("across", "вдоль") and str(read.report) == "40 images"
    assert torch.bincount(read.training.labels).tolist() == [18, 18]
    assert torch.bincount(read.validation.labels).tolist() == [2, 2]
    assert read.training.pixels.shape == (36, 1, 36, 36) and read.training.pixels.dtype == torch.uint8
    whole = Preprocess(36, 36, (0.5,), (0.5,)).square
    squares = {whole(Image.open(path)).numpy().tobytes(): path.parent.name == "вдоль" for path in folder.rglob("*.png")}
    for part in (read.training, read.validation):
        for pixels, label in zip(part.pixels, part.labels.tolist(), strict=True):
            assert squares[pixels.numpy().tobytes()] == bool(label)


def test_train_and_val_are_taken_as_they_are(folder: Path) -> None:
    (folder / "across").rename(folder / "x")
    for part, name in (("train", "x"), ("train", "вдоль"), ("val", "вдоль")):
        (folder / part).mkdir(exist_ok=True)
        (folder / part / name).mkdir()
    for path in sorted((folder / "x").iterdir()):
        path.rename(folder / "train" / "x" / path.name)
    for index, path in enumerate(sorted((folder / "вдоль").iterdir())):
        path.rename(folder / ("val" if index < 5 else "train") / "вдоль" / path.name)
    for name in ("x", "вдоль"):
        (folder / name).rmdir()
    read = read_image_folder(folder, SMALL)
    assert torch.bincount(read.training.labels).tolist() == [20, 15] and read.validation.labels.tolist() == [1] * 5
    striped(folder / "val" / "other" / "a.png", True, random.Random(1))
    with pytest.raises(ValueError, match=r"val has classes that are not in train: other"):
        read_image_folder(folder, SMALL)


def test_what_cannot_be_read_is_named_and_counted(folder: Path) -> None:
    (folder / "across" / "bad.png").write_text("no image")
    whole = (folder / "across" / "00.png").read_bytes()
    (folder / "вдоль" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "вдоль" / "gone.png").symlink_to("nowhere.png")
    (folder / "вдоль" / "notes.txt").write_text("not an image, and not said to be one")
    assert str(read_image_folder(folder, SMALL).report).splitlines() == [
        "40 images, 3 skipped",
        "  skipped, not an image: across/bad.png",
        "  skipped, a damaged image: вдоль/cut.png",
        "  skipped, cannot be read (No such file or directory): вдоль/gone.png",
    ]


def test_folders_that_cannot_be_learned_from_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none is not a folder: give one that holds a folder of images"):
        read_image_folder(tmp_path / "none", SMALL)
    with pytest.raises(ValueError, match=r"across holds 0 folders of images, and a classifier needs 2"):
        read_image_folder(folder / "across", SMALL)
    for name in ("empty", "unreadable"):
        (folder / name).mkdir()
    (folder / "unreadable" / "bad.png").write_text("no image")
    with pytest.raises(
        ValueError,
        match=r"has 2 classes without an image that can be read "
        r"\(empty, unreadable; unreadable/bad.png, not an image\): add images, or remove the folders$",
    ):
        read_image_folder(folder, SMALL)
    for index in range(5):
        (folder / "unreadable" / f"bad{index}.png").write_text("no image")
    with pytest.raises(ValueError, match=r"bad1.png, not an image; 3 more cannot be used\): add images"):
        read_image_folder(folder, SMALL)
    (folder / "empty").rmdir()
    with pytest.raises(ValueError, match=r"has 1 class without an image that can be read \(unreadable;"):
        read_image_folder(folder, SMALL)
    for name in ("a", "b"):
        striped(tmp_path / "few" / name / "only.png", True, random.Random(0))
    with pytest.raises(ValueError, match="leaves no image to measure by"):
        read_image_folder(tmp_path / "few", SMALL)
    (tmp_path / "split" / "val").mkdir(parents=True)
    (tmp_path / "few").rename(tmp_path / "split" / "train")
    with pytest.raises(ValueError, match=r"val holds no image that can be read: put some of each class into it"):
        read_image_folder(tmp_path / "split", SMALL)


def test_augmented_images_are_parts_of_the_image() -> None:
    side = 48
    ramp = torch.arange(side).float().expand(3, side, side)  # tells x
    pixels = torch.stack([ramp, ramp.transpose(1, 2)]).repeat(100, 1, 1, 1).byte()
    parts = augment(pixels, 32, torch.Generator().manual_seed(0))
    assert parts.shape == (200, 3, 32, 32) and parts.min() >= 0 and parts.max() <= side - 1
    across = parts[0::2, 0, 0]
    steps = across.diff(dim=1)[:, 8:24].mean(dim=1)  # pixels of the image a pixel of the part
    mirrored = steps < 0
    assert 30 < mirrored.sum() < 70
    widths = steps.abs() * 32 / side
    assert widths.min() >= (0.35 * 3 / 4) ** 0.5 - 0.05 and widths.max() <= 1.01 and widths.std() > 0.05
    down = parts[1::2, 0, :, 0].diff(dim=1)[:, 8:24].mean(dim=1)
    assert (down > 0).all()  # never upside down
    heights = down * 32 / side
    assert heights.min() > 0.45 and heights.max() <= 1.01
    assert torch.equal(parts, augment(pixels, 32, torch.Generator().manual_seed(0)))


def test_a_small_folder_is_learned_and_the_best_weights_tell_new_images(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[float, bool]] = []
    classifier = train(folder, tmp_path / "run", 120, on_validation=lambda *each: told.append(each))
    assert classifier.classes == ("across", "вдоль") and classifier.preprocess == SMALL
    rng = random.Random("unseen")
    for index in range(20):
        striped(tmp_path / "new" / f"{index:02}.png", index % 2 == 0, rng)
    found = classify(tmp_path / "new", weights=tmp_path / "run" / BEST, top=1, device="cpu")
    assert [each.labels[0].name for each in found] == ["across", "вдоль"] * 10
    assert told[-1][0] == 0.0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [BEST, "log.jsonl", "state.safetensors"]


def test_the_best_weights_are_kept_and_a_killed_run_continues(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[float, bool]] = []

    def run(errors: list[float], steps: int) -> Classifier:
        told.clear()
        measured = iter(errors)
        return train(folder, tmp_path / "run", steps, measure=lambda *_: next(measured),
                     on_validation=lambda *each: told.append(each))  # fmt: skip

    first = run([0.3], 2).network.state_dict()
    worse = run([0.3, 0.4], 4).network.state_dict()  # the best so far is measured again
    assert told == [(0.4, False)] and all(torch.equal(first[key], worse[key]) for key in first)
    equal = run([0.3, 0.3], 5).network.state_dict()
    assert told == [(0.3, True)] and not torch.equal(first["classifier.fc.weight"], equal["classifier.fc.weight"])
    better = run([0.3, 0.1], 6).network.state_dict()
    assert told == [(0.1, True)] and not torch.equal(first["classifier.fc.weight"], better["classifier.fc.weight"])
    (folder / "вдоль").rename(folder / "along")
    with pytest.raises(ValueError, match=rf"{BEST} is of another training"):
        run([], 8)


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "learned.safetensors"
    save_classifier(Classifier(LeNet5(3), "lenet5", ("a", "b", "c"), SMALL), path)
    return path


def test_frozen_features_stay_and_the_head_is_that_of_the_folder(folder: Path, tmp_path: Path, learned: Path) -> None:
    before = load_classifier(learned).network.state_dict()
    for frozen, kept in (
        (None, ("features.", "classifier.f6")),
        (("features.c1", "features.c3"), ("features.c1", "features.c3")),
    ):
        out = tmp_path / str(frozen)
        after = train(folder, out, 2, architecture=None, weights=learned, frozen=frozen).network.state_dict()
        assert after["classifier.fc.weight"].shape == (2, 84)
        same = {key for key in before if before[key].shape == after[key].shape and torch.equal(before[key], after[key])}
        assert same == {key for key in before if key.startswith(kept)}


def test_a_size_that_does_not_suit_is_refused_before_anything_is_read(tmp_path: Path, learned: Path) -> None:
    starts: list[dict[str, Any]] = [{"architecture": "alexnet"}, {"architecture": None, "weights": learned}]
    for start in starts:
        with pytest.raises(ValueError, match=r"an input of \d×24×24 is too small: at features"):
            train(tmp_path / "none", tmp_path / "run", size=24, **start)
    for size in (0, -5):
        with pytest.raises(ValueError, match=rf"size {size} is out of range: use 1 pixel or more"):
            train(tmp_path / "none", tmp_path / "run", size=size)
    with pytest.raises(ValueError, match="batch 1 is too small"):
        train(tmp_path / "none", tmp_path / "run", batch=1)
    with pytest.raises(ValueError, match=r"learned.safetensors is not a folder: give --out one that is new"):
        train(tmp_path / "none", learned)


def test_the_command_trains_and_names_the_weights(folder: Path, tmp_path: Path, capsys, learned: Path) -> None:
    (folder / "across" / "bad.png").write_text("no image")
    arguments = ["vision", "train", folder, "--from", learned, "--freeze", "features", "--steps", 2, "--batch", 4]
    arguments += ["--device", "cpu"]
    status = main([*map(str, arguments), "--out", str(tmp_path / "run")])
    captured = capsys.readouterr()
    assert (status, captured.out) == (0, f"{tmp_path / 'run' / BEST}\n")
    assert "40 images, 1 skipped\n  skipped, not an image: across/bad.png" in captured.err
    assert "top-1 error on the held-out images: " in captured.err and ", the best so far" in captured.err
    assert load_classifier(tmp_path / "run" / BEST).classes == ("across", "вдоль")


def test_published_weights_are_pickles_and_read_only_when_asked_for(folder: Path, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    torch.save(build("resnet18w16").state_dict(), tmp_path / "net.pth")
    arguments = ["vision", "train", folder, "--from", tmp_path / "net.pth", "--model", "resnet18w16", "--size", 32]
    arguments += ["--steps", 1, "--batch", 2, "--device", "cpu", "--out", tmp_path / "run"]
    assert main([str(each) for each in arguments]) == 2
    assert "net.pth is not a .safetensors file but a pickle" in capsys.readouterr().err
    assert main([str(each) for each in [*arguments, "--allow-pickle"]]) == 0
    assert load_classifier(tmp_path / "run" / BEST).classes == ("across", "вдоль")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none"], "none is not a folder"),
        (["."], "holds 1 folder of images"),
        (["stripes", "--freeze", "features"], "give it with --from FILE"),
        (["stripes", "--minutes", "1", "--steps", "2"], "two budgets"),
        (["stripes", "--steps", "0"], "steps must be a whole number from 1 to 1000000000, not 0"),
        (["stripes", "--model", "resnet20"], "model 'resnet20' is not known"),
        (["stripes", "--from", "learned.safetensors", "--freeze", "layer1"], "LeNet5 has no layer 'layer1'"),
        (["stripes", "--smoothing", "1"], "a label smoothing of 1.0 is out of range"),
        ([], "the following arguments are required: DIR"),
    ],
)
def test_a_mistake_is_a_line_and_status_2(
    folder: Path, learned: Path, capsys, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(folder.parent)
    status = main(["vision", "train", *arguments, "--out", "run", "--device", "cpu"])
    captured = capsys.readouterr()
    # Beside how many images were read.
    lines = [line for line in captured.err.splitlines() if line.strip() and not line.endswith("images")]
    assert (status, captured.out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("genpipe: error: ") and says in lines[0]
    assert not list(Path().glob("run/*"))
