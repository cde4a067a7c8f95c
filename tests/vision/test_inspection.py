"""What a look inside a classifier shows, in Python and by the command."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.cli import main
from genpipe.vision.inspection import (
    feature_maps,
    first_filters,
    grad_cam,
    image_grid,
    inspect_image,
    last_maps,
    stretched,
)
from genpipe.vision.lenet import LeNet5
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.resnet import ResNet
from genpipe.vision.weights import Classifier, save_classifier


class Pooled(nn.Module):
    """A convolution, a ReLU in place, the mean of each map, a linear layer: the network of class activation maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(pixels)).mean(dim=(2, 3)))


@pytest.fixture
def pooled() -> Pooled:
    torch.manual_seed(0)
    return Pooled()


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_is_the_class_activation_map_where_maps_are_averaged(pooled: Pooled, frozen: bool) -> None:
    pooled.requires_grad_(not frozen)
    pixels = torch.randn(1, 3, 16, 12, generator=torch.Generator().manual_seed(1))
    for target in range(4):
        maps = pooled.conv(pixels).relu()  # "Learning Deep Features for Discriminative Localization" (2016)
        evidence = (pooled.fc.weight[target, :, None, None] * maps[0]).sum(0).relu().detach()
        expected = F.interpolate(evidence[None, None], (16, 12), mode="bilinear")[0, 0]
        with torch.inference_mode(False), torch.no_grad():
            actual = grad_cam(pooled, pixels, "relu", target)
        assert torch.allclose(actual, expected / expected.max(), atol=1e-5) and expected.max() > 0
    assert all(parameter.grad is None for parameter in pooled.parameters())


def test_maps_are_those_before_the_next_layer_changed_them(pooled: Pooled) -> None:
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(feature_maps(pooled, pixels, "conv"), pooled.conv(pixels)[0])
    before = grad_cam(pooled, pixels, "conv", 0)
    assert not torch.equal(before, grad_cam(pooled, pixels, "relu", 0))
    with pytest.raises(ValueError, match=r"layer 'fc' puts out \(4,\), which are no maps"):
        feature_maps(pooled, pixels, "fc")
    with pytest.raises(ValueError, match="Pooled has no layer 'zzz'"):
        feature_maps(pooled, pixels, "zzz")


def test_the_last_maps_are_the_whole_last_block(pooled: Pooled) -> None:
    assert last_maps(ResNet(18, 3, width=4).eval(), torch.zeros(1, 3, 64, 64)) == "layer4"
    assert last_maps(ResNet(18, 3, width=4).eval(), torch.zeros(1, 3, 32, 32)) == "layer3"  # layer4 is a pixel
    assert last_maps(LeNet5(), torch.zeros(1, 1, 32, 32)) == "features.s4"
    assert last_maps(pooled, torch.zeros(1, 3, 8, 8)) == "relu"
    with pytest.raises(ValueError, match="Linear has no layer that puts out maps"):
        last_maps(nn.Linear(3, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="Linear has no convolution"):
        first_filters(nn.Linear(3, 3))


def test_cells_stand_in_rows_with_their_pixels_visible() -> None:
    cells = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    pixels = np.asarray(image_grid(cells, cell=8))
    assert pixels.shape == (2 * 8 + 1, 3 * 8 + 2, 3)
    for index in range(5):
        top, left = index // 3 * 9, index % 3 * 9
        expected = (cells[index] * 255).round().repeat_interleave(4, 1).repeat_interleave(4, 2).permute(1, 2, 0)
        assert np.array_equal(pixels[top : top + 8, left : left + 8], expected.numpy().astype(np.uint8))
    assert (pixels[:, 8] == 255).all() and (pixels[9:, 18:] == 255).all()


def test_each_cell_is_stretched_by_itself() -> None:
    cells = torch.tensor([[-2.0, 0, 2, 6], [5, 5, 5, 5]]).reshape(2, 1, 2, 2)
    assert stretched(cells).flatten(1).tolist() == [[0, 0.25, 0.5, 1], [0, 0, 0, 0]]


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ResNet(18, 3, width=4), "resnet18", ("кот", "dog", "ship"), Preprocess(36, 32))


def test_an_inspection_explains_the_likeliest_class_or_the_one_asked_for(classifier: Classifier) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    found = inspect_image(classifier, image)
    with torch.no_grad():
        assert found.target == int(classifier.network(classifier.preprocess(image)[None]).argmax())
    assert found.layer == "layer3"
    other = (found.target + 1) % 3
    asked = inspect_image(classifier, image, target=classifier.classes[other])
    assert asked.target == other and asked.filters.tobytes() == found.filters.tobytes()
    assert asked.grad_cam.tobytes() != found.grad_cam.tobytes()
    seen = np.asarray(found.grad_cam)[:224:7, :224:7]
    assert np.array_equal(seen, classifier.preprocess.square(image).permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match="class 3 is out of range: use 0 to 2"):
        inspect_image(classifier, image, target=3)
    with pytest.raises(ValueError, match="class 'cat' is not among the 3"):
        inspect_image(classifier, image, target="cat")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_classifier(
        Classifier(LeNet5(3), "lenet5", ("кот", "dog", "7"), Preprocess(32, 32, (0.5,), (0.5,))), "w.safetensors"
    )
    Image.new("RGB", (40, 30), (200, 0, 90)).save("an image.png")
    Path("bad.png").write_text("no image")
    return tmp_path


def test_the_command_writes_what_python_draws_and_names_the_files(files: Path, capsys) -> None:
    arguments = ["an image.png", "--weights", "w.safetensors", "--outdir", "new", "--class", "кот", "--device", "cpu"]
    assert main(["vision", "inspect", *arguments]) == 0
    captured = capsys.readouterr()
    names = ["an image-filters.png", "an image-features.s4.png", "an image-grad-cam.png"]
    assert captured.out.splitlines() == [str(Path("new", name)) for name in names]
    assert captured.err == "features.s4 for 'кот'\n"
    assert {path.name for path in Path("new").iterdir()} == set(names)
    for name, size in zip(names, ((3 * 66 - 1, 2 * 66 - 1), (4 * 66 - 1,) * 2, (2 * 225 - 1, 224)), strict=True):
        with Image.open(Path("new", name)) as image:
            assert image.size == size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bad.png", "--weights", "w.safetensors"], "bad.png is not an image"),
        (["an image.png"], "the following arguments are required: --weights"),
        (["an image.png", "--weights", "w.safetensors", "--layer", "x"], "LeNet5 has no layer 'x'"),
        (["an image.png", "--weights", "w.safetensors", "--layer", "classifier"], "which are no maps"),
        (["an image.png", "--weights", "w.safetensors", "--class", "9"], "class 9 is out of range: use 0 to 2"),
        (["an image.png", "--weights", "w.safetensors", "--class", "cat"], "class 'cat' is not among the 3"),
    ],
)
def test_a_mistake_is_a_line_and_status_2(files: Path, capsys, arguments: list[str], says: str) -> None:
    before = set(files.iterdir())
    assert main(["vision", "inspect", *arguments, "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and says in captured.err
    assert set(files.iterdir()) == before
