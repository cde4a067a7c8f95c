"""PNG files against Pillow's reader and writer."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genpipe.png import encode_png

ROOT = Path(__file__).parents[1]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(side: int = 96) -> np.ndarray:
    """Smooth shades with noise, as photographs have them."""
    rng = np.random.default_rng(1)
    across, down = np.meshgrid(np.linspace(0, 3, side), np.linspace(0, 2, side))
    shades = np.stack([np.sin(across * (k + 1) + down) * 90 + 128 for k in range(3)], axis=-1)
    return np.clip(shades + rng.normal(0, 8, shades.shape), 0, 255).astype(np.uint8)


def flat(side: int = 64) -> np.ndarray:
    """Areas of one colour with sharp edges, where Paeth's filter is the better one."""
    levels = np.zeros((side, side, 3), np.uint8)
    levels[: side // 2] = (200, 30, 60)
    levels[10:30, 10:30] = (20, 90, 250)
    return levels


IMAGES = {
    "noise": noise(33, 47),
    "photo": photo(),
    "flat": flat(),
    "one pixel": noise(1, 1),
    "one row": noise(1, 300),
    "one column": noise(300, 1),
    "black": np.zeros((20, 20, 3), np.uint8),
    "steps": (np.arange(64 * 64 * 3) * 7 % 256).astype(np.uint8).reshape(64, 64, 3),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pillow_reads_what_was_written(name):
    with Image.open(io.BytesIO(encode_png(IMAGES[name]))) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        assert (np.asarray(image) == IMAGES[name]).all()


def test_every_triple_of_neighbours_is_predicted_as_the_specification_says():
    # Left, above and corner in all combinations of some levels, each as a 2 × 2 image of one channel's levels.
    levels = [0, 1, 2, 3, 100, 101, 127, 128, 200, 254, 255]
    triples = np.array([(a, b, c) for a in levels for b in levels for c in levels], np.uint8)
    image = np.zeros((2, 2 * len(triples), 3), np.uint8)
    image[0, ::2], image[0, 1::2], image[1, ::2] = triples[:, 2:], triples[:, 1:2], triples[:, :1]
    image[1, 1::2] = 77
    assert (np.asarray(Image.open(io.BytesIO(encode_png(image)))) == image).all()


def test_filters_are_chosen_by_what_they_leave():
    import zlib

    def filters(levels: np.ndarray) -> set[int]:
        data = encode_png(levels)
        start = data.index(b"IDAT")
        size = int.from_bytes(data[start - 4 : start], "big")
        rows = zlib.decompress(data[start + 4 : start + 4 + size])
        return {rows[k * (1 + 3 * levels.shape[1])] for k in range(levels.shape[0])}

    assert filters(photo()) == {3} and filters(flat()) == {4}


def test_texts_are_those_that_pillow_reads():
    texts = {"parameters": "ein Schiff, корабль 🚢\nSteps: 20", "genpipe": '{"prompt": "\\ud800"}', "empty": ""}
    with Image.open(io.BytesIO(encode_png(noise(4, 4), texts))) as image:
        image.load()
        assert image.info == texts  # pyright: ignore[reportAttributeAccessIssue]


def test_files_of_photographs_are_about_as_small_as_pillows():
    data = io.BytesIO()
    Image.fromarray(photo(256)).save(data, "PNG")
    assert len(encode_png(photo(256))) < 1.05 * len(data.getvalue())


def test_without_isal_zlib_compresses():
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "import io, numpy as np; from PIL import Image; from genpipe.png import encode_png\n"
        "x = np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)\n"
        "assert (np.asarray(Image.open(io.BytesIO(encode_png(x, {'a': 'b'})))) == x).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
