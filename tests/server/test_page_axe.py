"""The page is for everybody: axe-core finds nothing serious in it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genpipe.server.engine import Engine
from tests.server.conftest import Open, drawn, until

axe = pytest.importorskip("axe_playwright_python.sync_playwright")


@pytest.mark.parametrize("locale", ["en-GB", "ru-RU"])
def test_nobody_is_kept_out(opened: Open, engine: Engine, locale: str, tmp_path: Path) -> None:
    engine.concepts["tiny"] = ("cat", "dog")
    page = opened(locale)
    look(page, f"{locale}, empty")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    page.locator("#file").set_input_files(tmp_path / "red.png")
    page.locator("#paint").click()
    page.locator("#brush").focus()
    page.keyboard.press("Space")
    page.locator("#form summary").click()
    page.locator("#prompt").fill("hound")
    until(page, "document.querySelector('#words button')")
    page.locator("#draw").click()
    drawn(page, 4).first.locator("summary").click()
    until(page, "document.querySelector('#history img')")
    page.locator("#read").click()  # the file does not say what made it
    until(page, "!document.getElementById('error').hidden")
    look(page, f"{locale}, everything shown")


def look(page: Any, state: str) -> None:
    """Look at the page by day and by night, on a wide screen and on a telephone."""
    for scheme in ("light", "dark"):
        for width in (1200, 360):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            found = axe.Axe().run(page).response["violations"]
            serious = [
                (one["id"], one["impact"], [node["html"] for node in one["nodes"]])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert not serious, (state, scheme, width)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (state, width)
