"""Images to labels, in Python and by the command, with a classifier that names the colour of an image."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from genpipe.cli import main
from genpipe.images import to_pil
from genpipe.scenes import canonical, names
from genpipe.scenes.compose import Composer
from genpipe.vision.classify import classify
from genpipe.vision.lenet import LeNet5
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.weights import Classifier, save_classifier

COLOURS = ("red", "green", "blue", "синий")


class Colour(nn.Module):
    """Logits that are the mean of each channel, and of blue a second time, lower."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0], [0, 0, 3.0]]))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels.mean(dim=(2, 3)))


@pytest.fixture
def colour() -> Classifier:
    return Classifier(Colour().eval(), "colour", COLOURS, Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (9, 7), (255 * (name == "red"), 255 * (name == "green"), 255 * (name == "blue"))).save(
            tmp_path / "images" / f"{name}.png"
        )
    return tmp_path / "images"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    settings = Preprocess(resize=32, crop=32, mean=(0.5,), std=(0.5,))
    path = tmp_path / "lenet.safetensors"
    save_classifier(Classifier(LeNet5(4), "lenet5", COLOURS, settings), path)
    return path


def test_labels_are_the_likeliest_first_and_sum_to_one_over_all(colour: Classifier, folder: Path) -> None:
    (prediction,) = classify(folder / "blue.png", model=colour, top=4)
    assert [label.name for label in prediction.labels[:2]] == ["blue", "синий"]
    assert [label.index for label in prediction.labels[:2]] == [2, 3]
    probabilities = [label.probability for label in prediction.labels]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-12)
    expected = torch.tensor([0.0, 0, 4, 3]).softmax(0)
    assert probabilities[0] == pytest.approx(float(expected[2]), rel=1e-6)


def test_a_folder_a_list_and_images_in_memory_agree(colour: Classifier, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    whole = classify(folder, model=colour, top=2, batch=2)
    assert [prediction.source for prediction in whole] == [str(path) for path in paths]
    assert [prediction.labels[0].name for prediction in whole] == ["blue", "green", "red"]
    listed = classify([str(paths[0]), folder, Image.open(paths[2])], model=colour, top=2, batch=2)
    assert [p.labels for p in listed] == [p.labels for p in (whole[0], *whole, whole[2])]
    assert listed[-1].source == "image 3"
    for path, prediction in zip(paths, whole, strict=True):
        assert classify(path, model=colour, top=2) == [prediction]


def test_an_image_that_cannot_be_read_raises_alone_and_is_told_among_others(colour: Classifier, folder: Path) -> None:
    (folder / "bad.png").write_text("no image")
    predictions = classify([folder, folder / "none.png"], model=colour, top=1)
    assert [prediction.error is None for prediction in predictions] == [False, True, True, True, False]
    assert predictions[0].labels == () and re.search(r"bad.png is not an image", str(predictions[0].error))
    assert str(predictions[-1].error).endswith("none.png: No such file or directory")
    with pytest.raises(ValueError, match=r"bad.png is not an image"):
        classify(folder / "bad.png", model=colour)
    with pytest.raises(FileNotFoundError):
        classify(folder / "none.png", model=colour)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_classifier_of_damaged_weights_is_refused(colour: Classifier, folder: Path, value: float) -> None:
    with torch.no_grad():
        colour.network.get_parameter("head.weight")[0, 0] = value
    with pytest.raises(ValueError, match="the colour gives NaN or infinity for these images: its weights are damaged"):
        classify(folder, model=colour)


def test_a_folder_of_one_bad_image_does_not_raise(colour: Classifier, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    (prediction,) = classify(tmp_path, model=colour, top=1)
    assert prediction.error is not None


def test_what_cannot_be_asked_is_refused(colour: Classifier, folder: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match="no weights given for resnet50: pass a file or URL"):
        classify(folder, model="resnet50")
    with pytest.raises(ValueError, match="both a classifier and weights"):
        classify(folder, model=colour, weights=weights)
    with pytest.raises(ValueError, match="no images given"):
        classify([], model=colour)
    with pytest.raises(ValueError, match="batch 0 is out of range"):
        classify(folder, model=colour, batch=0)
    with pytest.raises(ValueError, match="top 0 is out of range: use 1 or more"):
        classify(folder, model=colour, top=0)


def test_without_weights_the_embedded_classifier_names_what_a_scene_shows(tmp_path: Path) -> None:
    shown = ("pirate ship", "cat", "castle", "apple")
    for name, image in zip(shown, to_pil(Composer().render([canonical(name) for name in shown])), strict=True):
        image.save(tmp_path / f"{name}.png")
    predictions = classify(tmp_path, device="cpu")
    assert {Path(one.source).stem: one.labels[0].name for one in predictions} == {name: name for name in shown}
    (everything,) = classify(tmp_path / "cat.png", top=1000, device="cpu")
    assert [label.name for label in sorted(everything.labels, key=lambda label: label.index)] == list(names())
    assert sum(label.probability for label in everything.labels) == pytest.approx(1)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["classify", *map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_command_prints_what_python_returns(command, folder: Path, weights: Path) -> None:
    expected = classify(folder, weights=weights, top=2, device="cpu")
    status, out, err = command(folder, "--weights", weights, "--top", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == str(folder / "blue.png") and len(lines) == 3 * 3
    best = expected[0].labels[0]
    assert lines[1] == f"  {best.probability:6.1%}  {best.name}"
    status, out, _ = command(folder, "--weights", weights, "--top", 2, "--model", "lenet5", "--json")
    read = json.loads(out)
    assert status == 0 and [entry["source"] for entry in read] == [prediction.source for prediction in expected]
    assert read[0]["labels"][0] == {"index": best.index, "name": best.name, "probability": best.probability}
    assert all(entry["error"] is None for entry in read)


def test_the_command_names_and_counts_what_it_cannot_read(command, folder: Path, weights: Path) -> None:
    (folder / "bad.png").write_text("no image")
    status, out, err = command(folder, "--weights", weights)
    assert status == 2 and len(out.splitlines()) == 3 * (1 + 4)  # of five labels there are four
    error, count = err.splitlines()
    assert error.startswith("genpipe: error: ") and "bad.png is not an image" in error
    assert count == "genpipe: 1 of 4 images could not be read"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["red.png", "--model", "resnet50"], "no weights given for 'resnet50': pass --weights FILE"),
        (["red.png", "--weights", "net.pth"], "net.pth is not a .safetensors file but a pickle"),
        (["bad.png", "--weights", "net.pth"], "bad.png is not an image"),
        (["eps.png"], "eps.png is not an image: give a PNG, JPEG"),
        (["cut.png"], "cut.png is a damaged image: image file is truncated; fetch or save it again"),
        (["red.png", "--weights", "net-00000000.safetensors"], ", not 00000000 as its name says: fetch or rename it"),
        (
            ["red.png", "--weights", "old.pth", "--allow-pickle", "--model", "alexnet"],
            "old.pth is damaged, or holds more than tensors: fetch it again, or save model.state_dict() alone",
        ),
        (["red.png", "--weights", "../lenet.safetensors", "--model", "resnet50"], "holds weights of lenet5"),
        (
            ["red.png", "--weights", "../lenet.safetensors", "--top", "0"],
            "top must be a whole number from 1 to 100000, not 0",
        ),
        ([], "the following arguments are required: FILE"),
    ],
)
def test_a_mistake_is_a_line_and_status_2(
    command, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(folder)
    Path("bad.png").write_text("no image")
    Path("eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EOF\n")
    torch.save({}, "net.pth")
    Path("old.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))  # of which torch warns, too
    Image.effect_noise((64, 64), 50).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:2000])
    shutil.copy(weights, "net-00000000.safetensors")
    status, out, err = command(*arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("genpipe: error: ") and says in err
