"""Names of modules that have moved."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from genpipe import images
from genpipe.moved import MODULES, NAMES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("old", MODULES)
def test_an_old_name_gives_what_the_new_one_has_and_warns(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: import from {MODULES[old][0]}") as caught:
        module = importlib.import_module(old)
    assert len(caught) == 1
    for home in MODULES[old]:
        new = importlib.import_module(home)
        public = [name for name in vars(new) if not name.startswith("_")]
        assert public and all(hasattr(module, name) for name in public)
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_no_old_name_hides_a_file() -> None:
    for old in MODULES:
        path = ROOT.joinpath(*old.split("."))
        assert not path.with_suffix(".py").exists() and not (path / "__init__.py").exists()


def test_the_judge_is_imported_as_it_used_to_be_and_the_warning_points_at_the_import(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from genpipe.vision.judge import Judge, Score, choose_judge, scene_classifier, score\n"
                      "import genpipe.judge\nassert score is genpipe.judge.score\n")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "always", str(script)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert f"{script}:1: DeprecationWarning: genpipe.vision.judge has moved" in done.stderr


@pytest.mark.parametrize(("name", "home"), NAMES["genpipe.images"].items())
def test_a_name_that_left_a_module_is_found_and_warns(name: str, home: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"genpipe.images.{name} has moved: import it from {home}") as caught:
        found = getattr(images, name)
    assert found is getattr(importlib.import_module(home), name) and caught[0].filename == __file__
    with pytest.raises(AttributeError, match=r"module 'genpipe.images' has no attribute 'nothing'"):
        images.nothing  # noqa: B018


@pytest.mark.filterwarnings("ignore:genpipe.vision:DeprecationWarning")
def test_what_is_called_otherwise_is_found_too() -> None:
    old = importlib.import_module("genpipe.vision.pictures")
    assert old.read_picture is importlib.import_module("genpipe.vision.reading").read_image
    assert importlib.import_module("genpipe.vision.judge").Sight.__name__ == "Observation"


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("genpipe.vision.never")
