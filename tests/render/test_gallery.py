"""The gallery, opened from the disk in a real browser."""

import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from genpipe import Request
from genpipe.cli.options import given_fields
from genpipe.cli.parser import parse
from genpipe.render.gallery import LIMIT, write_gallery
from genpipe.render.journal import Journal
from genpipe.render.planning import Planner
from genpipe.render.rows import read_rows
from genpipe.spec import ModelSpec
from tests.render.conftest import MODEL

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
NASTY = "<script>document.title='broken'</script> </script> 'quotes' \"and\" $(rm -rf) \u2028 корабль"


def gallery(
    folder: Path,
    rows: list,
    scores: dict[int, float] | None = None,
    failed: dict[int, str] | None = None,
    spec: ModelSpec | None = None,
) -> Path:
    """A gallery of these rows, all done but those that failed; one small file is every picture."""
    folder.mkdir(exist_ok=True)
    (folder / ".genpipe").mkdir()
    journal = Journal(folder / ".genpipe" / "journal.sqlite")
    Planner(journal, MODEL, identity={}, settings={}).plan(read_rows(rows))
    details = {
        number: json.dumps({"seed": 1, "total": total, "score": {"shape": 0.5}})
        for number, total in (scores or {}).items()
    }
    with journal:
        for entry in journal.entries():
            if entry.number in (failed or {}):
                journal.failed([(entry.number, failed[entry.number])])  # pyright: ignore[reportOptionalSubscript]
            else:
                journal.done([(entry.number, 1, b"h", details.get(entry.number))])
    write_gallery(journal, folder, ".png", "embedded", spec=spec)
    journal.close()
    return folder / "index.html"


def page(index: Path, tmp_path: Path, address: str = "", script: str = "") -> str:
    """The document after the page's scripts, and after `script`, ran."""
    if script:
        index.write_text(index.read_text().replace("</html>", f"<script>{script}</script></html>"))
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run(
        [*map(str, command), f"{index.as_uri()}{address}"], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def cards(document: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r'<div class="prompt">(.*?)</div>', document, re.DOTALL)]


@browser
def test_it_shows_every_picture_and_only_text_of_what_rows_say(tmp_path):
    index = gallery(
        tmp_path / "out", ["a", NASTY, {"prompt": "b", "file_name": "d/x#1 ü%.png"}], failed={1: "no <b>memory"}
    )
    (tmp_path / "out/images/d").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "out/images/d/x#1 ü%.png")
    document = page(index, tmp_path, script="setTimeout(() => { document.body.dataset.loaded ="
                    "[...document.images].filter((image) => image.naturalWidth === 8).length; }, 2000);")  # fmt: skip
    assert cards(document) == ["a", NASTY.strip(), "b"]
    assert "3 pictures, 1 failed · embedded" in document and "no &lt;b&gt;memory" in document
    assert "<title>out</title>" in document
    assert 'data-loaded="1"' in document


@browser
@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("#q=blue", ["a blue dog"]),
        ("#q=CAT%20red", ["a red cat"]),
        ("#q=calm", ["a red cat"]),
        ("#q=nothing", []),
        ("#show=failed", ["a ship"]),
        ("#show=done&sort=prompt", ["a blue dog", "a red cat", "a tall ship"]),
        ("#sort=score", ["a tall ship", "a blue dog", "a red cat", "a ship"]),
        ("#score=0.5&sort=score", ["a tall ship", "a blue dog"]),
    ],
)
def test_search_filters_and_order(tmp_path, address, shown):
    rows = [{"prompt": "a red cat", "mood": "calm"}, "a blue dog", "a ship", "a tall ship"]
    index = gallery(tmp_path / "out", rows, scores={1: 0.1, 2: 0.5, 4: 0.9}, failed={3: "it would not"})
    assert cards(page(index, tmp_path, address)) == shown


KEYS = """
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const seen = [];
const note = () => seen.push(dialog.open ? dialog.querySelector("h2").textContent : document.activeElement.title);
navigator.clipboard.writeText = async (text) => { document.body.dataset.copied = text; };
press("ArrowRight"); note();
press("ArrowRight"); note();
document.activeElement.click(); note();
press("ArrowRight"); note();
press("ArrowRight"); note();
press("c");
press("ArrowLeft"); note();
dialog.close();
setTimeout(() => {
  note();
  press("/");
  seen.push(document.activeElement.id);
  document.body.dataset.seen = seen.join();
}, 500);
"""


@browser
def test_keys_walk_open_turn_and_copy(tmp_path):
    index = gallery(tmp_path / "out", [{"prompt": name, "seed": 2**64 - 1} for name in ("one", "two", "it's 3")])
    document = page(index, tmp_path, script=KEYS)
    assert "data-seen=\"one,two,two,it's 3,it's 3,two,two,search\"" in document
    copied = re.search(r'data-copied="([^"]*)"', document)
    assert copied is not None and html.unescape(copied[1]) == (
        "genpipe generate --prompt 'it'\\''s 3' --seed 18446744073709551615 --steps 2 --guidance-scale 4 --size 32x32"
    )


@browser
def test_ten_thousand_pictures_come_in_parts(tmp_path):
    index = gallery(tmp_path / "out", [f"ship {number}" for number in range(10_000)])
    document = page(index, tmp_path)
    assert "10,000 pictures" in document and 120 <= len(cards(document)) < 2000
    assert document.count('loading="lazy"') == len(cards(document))
    found = cards(page(index, tmp_path, "#q=ship%209999"))
    assert found == ["ship 9999"]


def test_its_command_asks_for_the_same_image(tmp_path):
    """Every setting that is not the default, and the model's, come back when the command is parsed."""
    spec = ModelSpec("-odd/mo del", variant="fp16", dtype="bf16", int8=True)
    rows = [
        {"prompt": "a", "steps": 7, "guidance_scale": 2.25, "width": 64, "height": 32, "speed": "draft"},
        {"prompt": "b", "negative_prompt": "-fog 'n' \"rain\"\n$(x)", "sampler": "Euler a", "clip_skip": 1},
        {"prompt": "c", "guidance_rescale": 0.7, "original_size": (32, 48), "crop": (4, 0)},
    ]
    index = gallery(tmp_path / "out", rows, spec=spec)
    script = (index.parent / ".genpipe/gallery.js").read_text()
    head = json.loads(script.splitlines()[0].removeprefix("const GALLERY = ").removesuffix(";"))
    commands = [json.loads(text) for text in re.findall(r"^GALLERY\.commands\[\d+\] = (.*);$", script, re.MULTILINE)]
    wanted = [json.loads(text) for text in re.findall(r"^GALLERY\.settings\[\d+\] = (.*);$", script, re.MULTILINE)]
    assert len(commands) == len(wanted) == 3
    for command, settings in zip(commands, wanted, strict=True):
        args = parse(["generate", "--prompt=x", "--seed", "1", *shlex.split(f"{command} {head['command']}")])
        args.prompt, (args.width, args.height) = args.prompt_option, args.size
        assert Request.from_dict(given_fields(args, Request)) == Request("x", seed=1, **settings)
        assert ModelSpec.from_dict(given_fields(args, ModelSpec)) == spec


def test_the_data_is_a_script_that_holds_each_picture_once(tmp_path):
    gallery(tmp_path / "out", ["a", NASTY])
    lines = (tmp_path / "out/.genpipe/gallery.js").read_text().splitlines()
    pictures = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"id"')]
    assert [picture["prompt"] for picture in pictures] == ["a", NASTY.strip()]
    assert all(isinstance(picture["seed"], str) for picture in pictures)
    assert f'"limit": {LIMIT}' in lines[0]
