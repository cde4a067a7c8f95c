"""The benchmark of rendering without networks runs, and tells what it did."""

import json

import numpy as np
import pytest

from scripts.benchmark.stub import encodings, measure, photographs


@pytest.mark.parametrize("writers", [None, 1])
def test_every_image_is_drawn_and_the_device_is_busy_no_longer_than_the_run(tmp_path, writers):
    found = measure(count=12, milliseconds=1.0, side=64, batch=4, folder=tmp_path, writers=writers)
    assert found["images"] == 12 and 0 < found["device_busy"] <= 1 and found["images_per_s"] > 0
    assert 0.5 < found["device_busy"] / (found["images_per_s"] * 0.001) < 2
    assert {"text", "denoise", "decode", "encode", "write", "busy"} <= found["stages_ms_per_image"].keys()
    json.dumps(found)


def test_its_images_are_as_hard_to_compress_as_photographs():
    (image,) = photographs(1, 128)
    assert image.shape == (128, 128, 3) and 30 < image.std() < 80
    assert 1 < np.abs(np.diff(image.astype(float), axis=1)).mean() < 20


def test_encodings_are_timed_and_weighed():
    found = encodings(photographs(2, 64), runs=1)
    assert found.keys() == {"genpipe", "Pillow, level 1", "Pillow, level 6"}
    assert all(one["ms"] > 0 and 1000 < one["bytes"] < 64 * 64 * 3 for one in found.values())
