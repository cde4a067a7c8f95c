import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.vision.preprocess import INTERPOLATIONS, Preprocess


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def resized_whole(image: Image.Image, settings: Preprocess) -> np.ndarray:
    """The levels of the middle, cut out of the whole resized image as torchvision does it."""
    short = min(image.size)
    width, height = (settings.resize if s == short else int(settings.resize * s / short) for s in image.size)
    image = image.resize((width, height), Image.Resampling[settings.interpolation.upper()])
    left, top = round((width - settings.crop) / 2), round((height - settings.crop) / 2)
    return np.asarray(image.crop((left, top, left + settings.crop, top + settings.crop)), dtype=np.float32)


@pytest.mark.parametrize("size", [(64, 64), (97, 41), (33, 80), (300, 211), (12, 9)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_middle_is_that_of_the_whole_resized_image(size: tuple[int, int], interpolation: str) -> None:
    settings = Preprocess(resize=32, crop=28, interpolation=interpolation)
    image = noise(*size)
    expected = resized_whole(image, settings)
    mean, std = torch.tensor(settings.mean)[:, None, None], torch.tensor(settings.std)[:, None, None]
    levels = (settings(image) * std + mean).permute(1, 2, 0).numpy() * 255
    difference = np.abs(levels - expected)
    # Places are computed in single precision: a level may be rounded the other way.
    assert difference.max() < 1.01 and difference.mean() < 0.01


def test_pixels_are_normalised_channel_by_channel() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    pixels = Preprocess(resize=4, crop=4)(image)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert pixels.shape == (3, 4, 4) and pixels.dtype == torch.float32
    assert torch.allclose(pixels, torch.tensor(expected)[:, None, None].expand(3, 4, 4), atol=1e-6)


def test_one_mean_makes_images_grey() -> None:
    pixels = Preprocess(resize=4, crop=4, mean=(0.5,), std=(0.5,))(Image.new("RGB", (8, 6), (255, 255, 255)))
    assert torch.equal(pixels, torch.ones(1, 4, 4))


def test_an_image_of_one_line_costs_no_more_than_its_middle() -> None:
    assert Preprocess()(Image.new("L", (60_000, 1), 128)).shape == (3, 224, 224)


def test_torchvision_computes_the_same() -> None:
    try:
        from torchvision import transforms  # pyright: ignore[reportMissingImports]
    except Exception as error:  # noqa: BLE001 - a build for another torch fails in many ways
        pytest.skip(f"torchvision does not import: {error}")
    settings = Preprocess()
    steps: list[Any] = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    reference = transforms.Compose([*steps, transforms.Normalize(settings.mean, settings.std)])
    for size in ((500, 333), (101, 207)):
        image = noise(*size)
        assert (reference(image) - settings(image)).abs().max() < 1.01 / 255 / 0.224


def test_settings_survive_json() -> None:
    settings = Preprocess(resize=40, crop=32, mean=(0.5,), std=(0.25,), interpolation="bicubic")
    assert Preprocess.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crop": 300}, "crop 300 of images resized to 256"),
        ({"crop": 0}, "crop 0"),
        ({"mean": (0.5, 0.5)}, "2 means and 3 stds"),
        ({"std": (0.1, 0.0, 0.1)}, "cannot normalise"),
        ({"interpolation": "area"}, "interpolation 'area' is not known"),
        ({"zoom": 2}, "is not a preprocessing"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Preprocess.from_dict({**Preprocess().to_dict(), **settings})
