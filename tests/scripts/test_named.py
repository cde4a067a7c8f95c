"""Images named after what they show measure the classifier. They are drawn and judged on the CPU."""

from collections import Counter
from pathlib import Path

import pytest

from genpipe.scenes import canonical, names
from scripts.evaluate.held_out import render
from scripts.evaluate.named import main, scenes


def test_no_thing_comes_twice_and_each_kind_as_often() -> None:
    asked = scenes(names(), 30)
    assert len({scene.objects[0].concept for scene in asked}) == 30
    assert Counter(scene.kind for scene in asked) == {"bare": 10, "setting": 10, "colour": 10}
    assert [scene.objects[0].concept for scene in asked] == [scene.objects[0].concept for scene in scenes(names(), 30)]


def test_an_image_named_after_something_else_is_an_error_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ("cat", "pirate ship", "castle")
    for thing, image in zip(shown, render([canonical(name) for name in shown], 256), strict=True):
        image.save(tmp_path / f"000 {thing if thing != 'castle' else 'dog'}.png")
    main(["--out", str(tmp_path), "--device", "cpu"])
    assert capsys.readouterr().out == "3 images: top-1 error 33.3%, top-5 error 33.3%\ndog: castle\n"


def test_an_empty_folder_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .* has no images: remove the folder"):
        main(["--out", str(tmp_path), "--device", "cpu"])


def test_drawn_images_and_their_sheet_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path / "own"), "--images", "2", "--device", "cpu"])
    files = sorted(file.stem.partition(" ")[2] for file in (tmp_path / "own").iterdir())
    assert files == sorted(scene.objects[0].concept for scene in scenes(names(), 2))
    assert (tmp_path / "own-000.png").exists() and "2 images in" in capsys.readouterr().out
