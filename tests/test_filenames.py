"""File names that rows ask for stay inside the folder, whatever they say."""

import random
import unicodedata

import pytest

from genpipe.filenames import collision_key, file_stem, numbered, safe_name


@pytest.mark.parametrize(
    ("asked", "name"),
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
        ("ABCDEF" * 5 + "00.png", "_" + "ABCDEF" * 5 + "00.png"),
        ("a.png/b.png", "a_png/b.png"),
        ("x.WEBP/y.jpeg/z", "x_WEBP/y_jpeg/z.png"),
        ("com¹.png", "_com¹.png"),
        ("LPT³", "_LPT³.png"),
        ("conin$", "_conin$.png"),
        ("CONOUT$.jpg", "_CONOUT$.jpg"),
        ("con .png", "_con.png"),
        ("aux . /x", "_aux/x.png"),
        ("nul.tar/x", "_nul.tar/x.png"),
        ("aux" + " " * 300 + "b.png", "_aux.png"),
        ("console.png", "console.png"),
        (". .hidden.png", "hidden.png"),
        ("a\u00a0.\u3000", "a.png"),
        ("a\u202egnp.exe", "agnp.exe.png"),
        ("a\u0085\u2028b", "ab.png"),
        ("E\u0301.png", "É.png"),
        ("e\u200d\u0301", "é.png"),
    ],
)
def test_names_are_made_safe(asked, name):
    assert safe_name(asked, ".png") == name


@pytest.mark.parametrize(
    "asked",
    ["x" * 300, "ж" * 300, "/".join("abcdefghijklmnop"), "y" * 300 + ".jpg", "가" * 300 + "/" + "😀" * 300],
)
def test_names_fit_into_file_systems(asked, tmp_path):
    name = numbered(safe_name(asked, ".png"), 99_999)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert all(len(part.encode()) <= 220 for part in name.split("/")) and name.count("/") < 8


def test_no_name_leaves_the_folder(tmp_path):
    rng = random.Random(0)
    pieces = [
        *("..", ".", "/", "\\", "~", "a", " ", ":", "\0", "con", "com¹", "%2e%2e", "\u202e", "\ud800", "é", ".png"),
        *("\u0301", "\u200d", "\u3000", "0" * 32, "x" * 90, "가" * 40, ".webp/", "K", "ẞ", "\u0338", "<"),
    ]
    for _ in range(5000):
        asked = "".join(rng.choices(pieces, k=rng.randrange(1, 9)))
        name = safe_name(asked, ".png")
        resolved = (tmp_path / name).resolve()
        assert resolved.is_relative_to(tmp_path.resolve()) and resolved != tmp_path.resolve(), asked
        assert safe_name(name, ".jpg") == name, asked
        assert safe_name(numbered(name, 2), ".jpg") == numbered(name, 2), asked
        *folders, last = name.split("/")
        assert last.endswith((".png", ".webp")) and not any(part.endswith((".png", ".webp")) for part in folders), asked


def test_numbers_go_before_the_suffix():
    assert numbered("a.b/c.png", 2) == "a.b/c-2.png"


@pytest.mark.parametrize(
    ("one", "other"),
    [("É.png", "é.png"), ("É.png", "E\u0301.png"), ("é.PNG", "E\u0301.png"), ("Straße/x", "STRASSE/X"), ("Σ", "ς")],
)
def test_what_some_disk_takes_for_one_name_has_one_key(one, other):
    assert one != other and collision_key(one) == collision_key(other)


def test_other_names_have_other_keys():
    names = ["a.png", "b.png", "a/b.png", "a-b.png", "e.png", "é.png", "è.png", "ё.png", "е.png"]
    assert len({collision_key(name) for name in names}) == len(names)
    assert {collision_key(unicodedata.normalize(form, "ё")) for form in ("NFC", "NFD")} == {collision_key("Ё")}


@pytest.mark.parametrize("prompt", ["con", "COM¹", "Lpt9", "nul"])
def test_a_prompt_that_is_a_device_of_windows_gets_another_stem(prompt):
    assert file_stem(prompt).startswith("picture-")
