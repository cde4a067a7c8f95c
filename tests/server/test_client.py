"""A server is called like a pipeline, from Python and from a shell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import genpipe
from genpipe.cli import main
from genpipe.client import Client
from genpipe.pipeline import Pipeline
from genpipe.server.app import create_app
from genpipe.server.engine import Engine
from genpipe.spec import ModelSpec
from scripts.benchmark.serving import listening
from tests.pipeline.drawing import difference
from tests.server.conftest import threads

SMALL: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0, "progress": False}


def test_it_draws_what_the_pipeline_draws(url: str, pipe: Pipeline) -> None:
    draw = genpipe.Client(url)
    image = draw("a red cat", seed=2**64 - 1, **SMALL)
    expected: Any = pipe("a red cat", seed=2**64 - 1, **SMALL)
    assert difference(image, expected) <= 2 and "a red cat" in image.info["parameters"]
    several = draw(["a cat", "a dog"], n=2, seed=3, sampler="euler_a", **SMALL)
    theirs = pipe(["a cat", "a dog"], n=2, seed=3, sampler="euler_a", **SMALL)
    assert [difference(a, b) <= 2 for a, b in zip(several, theirs, strict=True)] == [True] * 4
    assert isinstance(draw("a", seeds=[5], **SMALL), list)


def test_variations_are_those_of_one_call(url: str, pipe: Pipeline) -> None:
    settings: Any = {"n": 3, "seed": 4, "vary": 0.4, **SMALL}
    for ours, theirs in zip(Client(url)("a", **settings), pipe("a", **settings), strict=True):
        assert difference(ours, theirs) <= 2


def test_images_are_sent_and_warnings_come_back(url: str, pipe: Pipeline, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (4, 4, 20, 20))
    settings: Any = {"seed": 1, "image": tmp_path / "a.png", "mask": mask, **SMALL}
    assert difference(Client(url)("a", **settings), pipe("a", **settings)) <= 2
    warned: Any = {**SMALL, "guidance_scale": 1.0}
    image = Client(url)("a", seed=1, negative_prompt="fog", **warned)
    assert "negative_prompt has no effect" in image.info["warnings"]


def test_what_the_server_refuses_is_a_value_error(url: str) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"steps": 500}, "steps may be up to 150 on this server"),
        ({"stepz": 3}, "a request has no 'stepz'"),
        ({"loras": ["x"]}, "name them in the prompt"),
        ({"height": 33}, "height must be a multiple of 4"),
    ]
    for settings, error in refused:
        with pytest.raises(ValueError, match=error):
            Client(url)("a", progress=False, **settings)
    with pytest.raises(ValueError, match="there is no model 'x' here"):
        Client(url, model="x")("a", progress=False)
    with pytest.raises(ValueError, match="is not the address of a server"):
        Client("ftp://x")


def test_a_server_that_is_not_there_or_wants_a_key_is_an_os_error(engine: Engine) -> None:
    with listening(create_app(engine, key="secret")) as address:
        with pytest.raises(OSError, match="wants a key"):
            Client(address)("a")
        assert Client(address, api_key="secret")("a", seed=1, **SMALL).size == (32, 32)
    with pytest.raises(OSError, match="does not answer: is genpipe serve running there"):
        Client(address)("a")


def test_it_waits_where_there_is_no_room(pipe: Pipeline, specs: dict[str, ModelSpec]) -> None:
    small = Engine(specs, devices="cpu", most=1, waiting=2, launch=threads({"tiny": pipe}))
    small.open()
    assert small.wait(30)
    with listening(create_app(small)) as address:
        client = Client(address)
        client("a", n=2, **SMALL)  # from then on the server knows how soon there is room: in a second
        images = client("a", n=5, seed=1, progress=False, steps=20, width=64, height=64)
    assert len({image.tobytes() for image in images}) == 5
    assert b"genpipe_refused_full_total 0.0" not in small.metrics.text()
    small.close()


def test_the_command_draws_on_a_server(
    url: str,
    pipe: Pipeline,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["a red cat", "--server", url, "--seed", "5", "--steps", "3", "--guidance-scale", "4", "--quiet"]
    assert main([*common, "-n", "2", "--outdir", str(tmp_path), "--model", "tiny", "--size", "32x64"]) == 0
    saved = [Path(line) for line in capsys.readouterr().out.splitlines()]
    expected = pipe("a red cat", n=2, seed=5, width=32, height=64, **SMALL)
    for path, image in zip(saved, expected, strict=True):
        with Image.open(path) as drawn:
            assert difference(drawn, image) <= 2 and "parameters" in drawn.info
    assert main([*common, "--ar", "2:1", "--output", str(tmp_path / "wide.png")]) == 0
    with Image.open(tmp_path / "wide.png") as wide:
        assert wide.width > wide.height
    assert main([*common, "--deterministic", "--vae", "x"]) == 2
    assert "--deterministic, --vae cannot be chosen" in capsys.readouterr().err
