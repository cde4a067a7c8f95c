"""Styles by name."""

from pathlib import Path

import pytest

from genpipe.prompts.styles import Style, apply_styles, presets, read_styles
from genpipe.prompts.syntax import sections

STYLES = {
    "plain": Style("painted", "photo"),
    "Around": Style("an etching of {prompt}, fine lines", "{prompt}, colour"),
    "none": Style("", ""),
}


@pytest.mark.parametrize(
    ("given", "names", "expected"),
    [
        (("a cat", ""), ["plain"], ("a cat, painted", "photo")),
        (("a cat", "fog"), ["around"], ("an etching of a cat, fine lines", "fog, colour")),
        (("", "fog"), ["plain"], ("painted", "fog, photo")),
        (("a cat", "fog"), ["none"], ("a cat", "fog")),
        (("a cat", "fog"), [], ("a cat", "fog")),
        (("a cat", ""), ["plain", " AROUND "], ("an etching of a cat, painted, fine lines", "photo, colour")),
    ],
)
def test_styles_are_put_around_prompts(given: tuple[str, str], names: list[str], expected: tuple[str, str]) -> None:
    assert apply_styles(*given, names, STYLES) == expected


def test_an_unknown_style_names_those_near_it() -> None:
    with pytest.raises(ValueError, match=r"the style 'watercolor' is unknown: did you mean watercolour\?"):
        apply_styles("a cat", "", ["watercolor"], presets())
    with pytest.raises(ValueError, match="there are plain, Around, none"):
        apply_styles("a cat", "", ["zzzz"], STYLES)


def test_styles_of_the_web_ui_are_read(tmp_path: Path) -> None:
    path = tmp_path / "styles.csv"
    path.write_text('\ufeffname,prompt,negative_prompt\r\nA,"x, {prompt}\ny",z\r\nB,w,\r\n,,\r\nA,last,\r\n', "utf-8")
    assert read_styles(path) == {"A": Style("last", ""), "B": Style("w", "")}
    path.write_text("name,text\nA,x\n")
    assert read_styles(path) == {"A": Style("x", "")}


@pytest.mark.parametrize("content", [b"", b"prompt\nx\n", b"\xff\xfe\x00", b"name,prompt\n" + b"x" * 200_000])
def test_files_that_are_no_styles_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "styles.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"styles\.csv") as caught:
        read_styles(path)
    assert "\n" not in str(caught.value)


def test_a_dozen_styles_ship_and_keep_the_prompt() -> None:
    assert len(presets()) >= 12
    for name, style in presets().items():
        prompt, negative = apply_styles("a red cat", "fog", [name], presets())
        assert "a red cat" in prompt and len(prompt) > 20 and negative.startswith("fog, ")
        assert all(span.weight == 1 for text in style for part in sections(text) for span in part)
