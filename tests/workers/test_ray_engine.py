"""The same pictures on a Ray cluster, and none lost when an actor is killed."""

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ray")

from genpipe.render import Options, Run
from genpipe.workers.ray_engine import RayEngine
from tests.render.conftest import Inline

PROMPTS = [f"a red cat {number}" for number in range(12)]


@pytest.fixture
def options(tiny_checkpoint: Path) -> Options:
    return Options.of(model=str(tiny_checkpoint), dtype="fp32", settings={"steps": 2}, deterministic=True, batch=2)


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in (folder / "images").iterdir()}


def test_pictures_are_the_same_and_a_killed_actor_loses_none(options, tmp_path):
    engine = RayEngine(devices="cpu:1")
    run = Run(PROMPTS, tmp_path / "ray", options, engine=engine)
    for count, _ in enumerate(run.pictures()):
        if count == 3:
            engine.kill_one()
    assert run.done == 12 and run.report.lost_workers >= 1
    list(Run(PROMPTS, tmp_path / "local", options, engine=Inline()).pictures())
    assert pixels(tmp_path / "ray") == pixels(tmp_path / "local")
    assert not (tmp_path / "ray/.genpipe/parts").exists()


def test_stopping_ends_with_what_is_in_the_networks(options, tmp_path):
    run = Run(PROMPTS, tmp_path / "ray", options, engine=RayEngine(devices="cpu:1"))
    for _ in run.pictures():
        run.stop()
    assert 2 <= run.done < 12 and run.left == 12 - run.done


def test_a_model_that_cannot_be_loaded_is_refused(tmp_path):
    engine = RayEngine(devices="cpu:1")
    with pytest.raises(ValueError, match="missing"):
        list(Run(["a"], tmp_path / "out", Options.of(model=str(tmp_path / "missing")), engine=engine).pictures())
