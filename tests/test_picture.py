"""Images made of levels, whose pixels Pillow gets when it asks for them."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.images import Picture, grid, save_image, to_pil


def levels_of(seed: int, height: int = 9, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


USES: dict[str, Any] = {
    "array": np.asarray,
    "bytes": lambda image: np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3),
    "copy": lambda image: np.asarray(image.copy()),
    "deep copy": lambda image: np.asarray(copy.deepcopy(image)),
    "pickle": lambda image: np.asarray(pickle.loads(pickle.dumps(image))),
    "crop": lambda image: np.asarray(image.crop((0, 0, image.width, image.height))),
    "turned": lambda image: np.asarray(image.transpose(Image.Transpose.ROTATE_180))[::-1, ::-1],
    "channels": lambda image: np.dstack([np.asarray(channel) for channel in image.split()]),
    "pixels": lambda image: np.array(
        [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)], np.uint8
    ),
    "pasted": lambda image: np.asarray(grid([image])),
    "levels": lambda image: image.levels,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("before", [None, "levels", "array"])
def test_an_image_of_levels_is_one_of_pillows(use: str, before: str | None) -> None:
    levels = levels_of(1)
    image = Picture.of_levels(levels.copy())
    image.info["parameters"] = "a ship"
    assert (image.mode, image.size, image.width, image.height) == ("RGB", (12, 9), 12, 9)
    if before is not None:
        assert np.array_equal(USES[before](image), levels)
    assert np.array_equal(USES[use](image), levels)
    assert image.info["parameters"] == "a ship" and np.array_equal(image.levels, levels)


def test_what_is_drawn_on_an_image_of_levels_is_what_is_saved(tmp_path: Path) -> None:
    image, levels = Picture.of_levels(levels_of(2)), levels_of(2)
    assert np.array_equal(image.levels, levels)
    image.putpixel((3, 2), (1, 2, 3))
    image.paste((9, 9, 9), (5, 5, 7, 7))
    levels[2, 3], levels[5:7, 5:7] = (1, 2, 3), 9
    assert np.array_equal(image.levels, levels)
    save_image(image, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), levels)


def test_a_picture_knows_what_an_image_knows_and_no_more() -> None:
    image = Picture.of_levels(levels_of(3))
    assert not hasattr(image, "colour")
    image.close()
    assert Picture.of_levels(levels_of(3)).reduce(3).tobytes() == Image.fromarray(levels_of(3)).reduce(3).tobytes()


def test_threads_may_be_the_first_to_look_at_an_image_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        for seed in range(200):
            image, expected = Picture.of_levels(levels_of(seed)), levels_of(seed)
            assert all(np.array_equal(given, expected) for given in pool.map(np.asarray, [image] * 4))


def test_images_of_one_batch_do_not_hold_the_memory_of_all() -> None:
    images = to_pil(torch.zeros(4, 3, 8, 8))
    assert all(image.levels.base is None and image.levels.nbytes == 3 * 64 for image in images)
