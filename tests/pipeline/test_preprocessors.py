"""What is taken from an image to control with."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genpipe import Pipeline
from genpipe.inputs import PREPROCESSORS
from genpipe.pipeline.preprocessors import preprocess
from scripts.make.checkpoint import make_controlnet
from tests.pipeline.drawing import difference, draw

WIDTH, HEIGHT = 44, 36


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Pipeline:
    folder = tmp_path_factory.mktemp("control") / "controlnet"
    make_controlnet(tiny_checkpoint, folder)
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", control_model=folder)


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_outlines_are_taken_from_an_image(name: str, pipe: Pipeline) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    image.paste((20, 20, 120), (12, 8, 32, 28))
    found = preprocess(name, image)
    levels = np.asarray(found.convert("L"))
    assert found.size == image.size and found.mode == "RGB"
    inside, edge, outside = levels[16:20, 20:24].mean(), levels[16:20, 10:15].max(), levels[2:4, 2:6].mean()
    if name == "tile":
        assert inside < 60 < outside
    else:
        assert edge > 150 and outside < 30
    drawn = draw(pipe, control={"image": image, "preprocessor": name})
    assert difference(drawn, draw(pipe, control=found)) == 0
