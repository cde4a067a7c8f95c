"""The page's form: pictures to begin from, the brush, what the model reads, styles, settings of files."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from genpipe.images import save_image
from genpipe.pipeline import Pipeline
from genpipe.prompts.listing import list_tokens
from genpipe.prompts.styles import apply_styles, presets
from genpipe.server.engine import Engine
from tests.pipeline.drawing import difference
from tests.server.conftest import Open, drawn, until


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture's file of 32 by 32 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def draw_one(page: Any) -> Image.Image:
    """Draw one picture, and give it as the page has it."""
    page.get_by_label("How many").select_option("1")
    page.evaluate("document.getElementById('pictures').replaceChildren()")
    page.get_by_role("button", name="Draw", exact=True).click()
    return shown(drawn(page, 1))


def shown(figure: Any) -> Image.Image:
    read = """(image) => {
      const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
      canvas.getContext("2d").drawImage(image, 0, 0);
      return canvas.toDataURL();
    }"""
    data = figure.locator("img").evaluate(read).partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def paint(page: Any, *places: tuple[float, float]) -> None:
    """Paint a line over the picture; places are shares of its width and height."""
    page.locator("#brush").scroll_into_view_if_needed()
    box = page.locator("#brush").bounding_box()
    for index, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if not index:
            page.mouse.down()
    page.mouse.up()


def changed(page: Any, noise: Path) -> np.ndarray:
    """Draw, and tell which pixels are no longer those of the picture to begin from."""
    with Image.open(noise) as before:
        return (np.asarray(draw_one(page)) != np.asarray(before)).any(axis=2)


def test_a_picture_to_begin_from_and_its_settings(opened: Open, pipe: Pipeline, tmp_path: Path) -> None:
    image: Any = pipe("a red cat", seed=7, steps=5, guidance_scale=4.0, progress=False)
    save_image(image, tmp_path / "cat.png")
    page = opened()
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "cat.png")
    page.get_by_role("button", name="Use its settings").click()
    until(page, "document.getElementById('seed').value === '7'")
    assert page.get_by_label("A picture of").input_value() == "a red cat"
    assert page.locator("#steps").input_value() == "5" and page.locator("#kept").is_hidden()
    begun = draw_one(page)
    again = pipe("a red cat", seed=7, steps=5, guidance_scale=4.0, image=image, strength=0.7, progress=False)
    assert difference(begun, again) <= 2
    page.get_by_role("button", name="Take it away").click()
    assert page.locator("#given").is_hidden()
    assert difference(draw_one(page), image) <= 2


def test_settings_that_the_form_has_no_field_for_are_kept_and_said(
    opened: Open, pipe: Pipeline, tmp_path: Path
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a red cat\nNegative prompt: fog\nSteps: 4, Sampler: Euler a, CFG scale: 4, Seed: 9, Size: 40x48, Clip skip: 2, "
        "Model: dreamy",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=text)
    page = opened()
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "theirs.png")
    page.get_by_role("button", name="Use its settings").click()
    until(page, "document.getElementById('seed').value === '9'")
    assert page.locator("#kept-settings").inner_text() == "Also from its settings: clip_skip 1"
    assert "Model dreamy" in page.locator("#unread").inner_text()
    assert page.locator("#shape option:checked").inner_text() == "40 by 48"
    page.get_by_role("button", name="Take it away").click()
    settings: Any = {"seed": 9, "steps": 4, "guidance_scale": 4.0, "sampler": "euler_a", "negative_prompt": "fog"}
    settings |= {"width": 40, "height": 48, "progress": False}
    assert difference(draw_one(page), pipe("a red cat", clip_skip=1, **settings)) <= 2
    page.get_by_role("button", name="Leave these out").click()
    assert difference(draw_one(page), pipe("a red cat", **settings)) <= 2


def test_what_is_no_picture_is_said(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    page = opened()
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "x.png")
    until(page, "document.getElementById('error').textContent === 'This is not a picture, or it is damaged.'")
    assert page.locator("#given").is_hidden()


def test_only_what_the_brush_painted_changes(opened: Open, noise: Path) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("a red cat")
    page.get_by_label("Choose a picture").set_input_files(noise)
    page.get_by_role("button", name="Change only a part").click()
    page.get_by_label("Width of the brush").fill("24")
    assert page.get_by_role("button", name="Undo").is_disabled()
    paint(page, (0.25, 0.1), (0.25, 0.9))
    paint(page, (0.75, 0.1), (0.75, 0.9))
    both = changed(page, noise)
    page.get_by_role("button", name="Undo").click()
    left = changed(page, noise)
    assert both[4:28, 8].all() and both[4:28, 24].all() and not both[:, 15:17].any()
    assert left[4:28, 8].all() and not left[:, 15:].any()
    page.get_by_role("button", name="Clear").click()
    assert changed(page, noise).mean() > 0.9


def test_the_brush_is_moved_and_paints_with_keys(opened: Open, noise: Path) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("a red cat")
    page.get_by_label("Choose a picture").set_input_files(noise)
    page.get_by_role("button", name="Change only a part").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Width of the brush").fill("40")
    page.get_by_label("Brush over the picture").focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    page.locator("#brush-size").focus()
    spot = changed(page, noise)
    ys, xs = np.nonzero(spot)
    # 2 steps of half a radius, 0.2 of 32 pixels, from the middle.
    assert abs(xs.mean() + 0.5 - (16 - 6.4)) < 1 and abs(ys.mean() + 0.5 - 16) < 1 and 20 < spot.sum() < 150


def test_what_was_painted_is_in_the_history(opened: Open, noise: Path) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("a red cat")
    page.get_by_label("Choose a picture").set_input_files(noise)
    page.get_by_role("button", name="Change only a part").click()
    page.get_by_label("Width of the brush").fill("24")
    paint(page, (0.25, 0.1), (0.25, 0.9))
    first = changed(page, noise)
    assert first.any()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.get_by_role("button", name="Use these settings: a red cat").click()
    until(page, "!document.getElementById('brush').hidden")
    drawn(page, 1).get_by_role("button", name="Enlarge").click()
    until(page, "document.querySelector('#pictures img:not(.preview)')?.naturalWidth === 64")
    drawn(page, 1).get_by_text("Copy as…").click()
    page.get_by_role("button", name="Command").click()
    until(page, "document.getElementById('status').textContent === 'Copied.'")
    command = page.evaluate("navigator.clipboard.readText()")
    assert "--upscale 2" in command and "--image FILE.png" in command and "--mask" not in command
    assert np.array_equal(changed(page, noise), first)


def test_the_length_and_strange_words_are_said_under_the_prompt(opened: Open, pipe: Pipeline, engine: Engine) -> None:
    engine.concepts["tiny"] = ("cat", "dog")
    page = opened()
    page.get_by_label("A picture of").fill("a zebra and a dog")
    found = list_tokens("a zebra and a dog", pipe.tokenizers[0])
    count = sum(map(len, found.chunks))
    until(page, f"document.querySelector('#words span')?.textContent === 'Length: {count} of {found.room}'")
    assert page.locator("#words mark").all_inner_texts() == ["zebra"]
    page.get_by_label("A picture of").fill("a red cat")
    until(page, "!document.querySelector('#words mark')")
    page.get_by_label("A picture of").fill("a hound")
    until(page, "document.querySelector('#words button')")
    page.get_by_role("button", name="Write “dog” in place of “hound”").click()
    assert page.get_by_label("A picture of").input_value() == "a dog"
    page.get_by_label("A picture of").fill("a (cat:999)")
    until(page, "/weight/.test(document.getElementById('words').textContent)")
    assert page.locator("#error").is_hidden()


def test_a_style_is_put_around_the_prompt_and_not_into_the_field(opened: Open) -> None:
    page = opened()
    page.get_by_label("A picture of").fill("a red cat")
    page.get_by_label("Keep out of it").fill("fog")
    page.get_by_label("Style").select_option("watercolour")
    draw_one(page)
    prompt, negative = apply_styles("a red cat", "fog", ["watercolour"], presets())
    assert page.locator("#pictures img").get_attribute("alt").startswith(f"Picture: {prompt}, seed")
    page.get_by_text("Copy as…").click()
    page.get_by_role("button", name="Command").click()
    until(page, "document.getElementById('status').textContent === 'Copied.'")
    command = page.evaluate("navigator.clipboard.readText()")
    assert f"--prompt '{prompt}'" in command and f"--negative-prompt '{negative}'" in command
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.get_by_role("button", name="Use these settings").click()
    assert page.get_by_label("A picture of").input_value() == "a red cat"
    assert page.get_by_label("Style").input_value() == "watercolour"
