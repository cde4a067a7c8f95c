"""index.html: a page over a run's pictures that opens from the disk, without a server.

A page on the disk may not fetch, so the data stands in a script beside it, `.genpipe/gallery.js`.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from genpipe.render.folder import image_path
from genpipe.render.journal import DONE, FAILED, Entry, Journal
from genpipe.render.results import write_lines
from genpipe.workers.messages import THUMBNAIL, thumbnail_path

# A page of more is slow to open.
LIMIT = 50_000


def write_gallery(journal: Journal, root: Path, suffix: str, model: str, base: str = "") -> None:
    """Write index.html and its data: the first `LIMIT` pictures that are done or failed.

    Args:
        base: what goes before the pictures' paths where they are not in the folder; ends in a slash.
    """
    page = (files("genpipe.render") / "gallery.html").read_text(encoding="utf-8")
    write_lines(
        root / ".genpipe" / "gallery.js", _script(journal, suffix, {"title": root.name, "model": model, "base": base})
    )
    write_lines(root / "index.html", [page])


def _script(journal: Journal, suffix: str, head: dict[str, Any]) -> Iterator[str]:
    head |= {"limit": LIMIT, "settings": {}}
    yield f"const GALLERY = {json.dumps(head)};\nGALLERY.pictures = [\n"
    settings: set[int] = set()
    count = 0
    for window in journal.windows(plan=False):
        if count >= LIMIT:
            break
        for entry in window:
            if entry.state in (DONE, FAILED) and count < LIMIT:
                count += 1
                settings.add(entry.settings)
                shown = _picture(entry, journal.settings(entry.settings), suffix)
                yield f"{json.dumps(shown, separators=(',', ':'))},\n"
    yield "];\n"
    for number in sorted(settings):
        yield f"GALLERY.settings[{number}] = {json.dumps(journal.settings(number))};\n"


def _picture(entry: Entry, settings: dict[str, Any], suffix: str) -> dict[str, Any]:
    """What the page shows of a picture; seeds as text, since JavaScript's numbers end at 2⁵³."""
    shown: dict[str, Any] = {
        "id": entry.id.hex(),
        "prompt": entry.prompt,
        "seed": str(entry.seed),
        "line": entry.line,
        "settings": entry.settings,
    }
    if entry.extra:
        shown["extra"] = entry.carried
    if entry.state == FAILED:
        return {**shown, "error": entry.detail}
    shown["file"] = image_path(entry, suffix)
    if max(settings["width"], settings["height"]) > THUMBNAIL:
        shown["thumbnail"] = thumbnail_path(entry.id.hex())
    if (judged := entry.judged) is not None:
        shown |= {"seed": str(judged.get("seed", entry.seed)), "parts": judged.get("score")}
        if judged.get("total") is not None:
            shown["score"] = judged["total"]
    return shown
