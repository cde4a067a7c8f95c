"""File names that rows ask for stay inside the folder, whatever they say."""

import random

import pytest

from genpipe.filenames import numbered, safe_name


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ("hero.png", "hero.png"),
        ("hero", "hero.png"),
        ("hero.v2", "hero.v2.png"),
        ("a/b/hero.JPG", "a/b/hero.JPG"),
        ("../../etc/passwd", "etc/passwd.png"),
        ("/etc/passwd", "etc/passwd.png"),
        ("C:\\Windows\\x.png", "C/Windows/x.png"),
        ("..\\..\\x.webp", "x.webp"),
        ("con", "_con.png"),
        ("NUL.png", "_NUL.png"),
        (".hidden.png", "hidden.png"),
        (".genpipe/journal.sqlite", "genpipe/journal.sqlite.png"),
        ("a\0b\n?.png", "ab.png"),
        ("trailing. ", "trailing.png"),
        ("...", "picture.png"),
        ("/", "picture.png"),
        ("корабль.png", "корабль.png"),
        ("0" * 32 + ".png", "_" + "0" * 32 + ".png"),
    ],
)
def test_names_are_made_safe(wish, name):
    assert safe_name(wish, ".png") == name


@pytest.mark.parametrize("wish", ["x" * 300, "ж" * 300, "/".join("abcdefghijklmnop"), "y" * 300 + ".jpg"])
def test_names_fit_into_file_systems(wish, tmp_path):
    name = safe_name(wish, ".png")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert all(len(part.encode()) <= 220 for part in name.split("/")) and name.count("/") < 8


def test_no_name_leaves_the_folder(tmp_path):
    rng = random.Random(0)
    pieces = ["..", ".", "/", "\\", "~", "a", " ", ":", "\0", "con", "%2e%2e", "\u202e", "\ud800", "é", ".png"]
    for _ in range(3000):
        wish = "".join(rng.choices(pieces, k=rng.randrange(1, 9)))
        resolved = (tmp_path / safe_name(wish, ".png")).resolve()
        assert resolved.is_relative_to(tmp_path.resolve()) and resolved != tmp_path.resolve(), wish


def test_numbers_go_before_the_suffix():
    assert numbered("a.b/c.png", 2) == "a.b/c-2.png"
