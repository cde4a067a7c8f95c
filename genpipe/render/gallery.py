"""index.html: a page that shows the images of a run, and opens from the disk without a server.

A page on the disk may not fetch data, so the data is a script beside it: `.genpipe/gallery.js`.
"""

import json
import shlex
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from genpipe.fields import defaults_of, settings_of
from genpipe.render.folder import image_path
from genpipe.render.journal import DONE, FAILED, Entry, Journal
from genpipe.render.recorded import recorded_request
from genpipe.render.results import write_lines
from genpipe.request import Request
from genpipe.spec import ModelSpec
from genpipe.workers.messages import THUMBNAIL, thumbnail_path

# A page with more images is slow to open.
LIMIT = 50_000


def write_gallery(
    journal: Journal, root: Path, suffix: str, model: str, base: str = "", spec: ModelSpec | None = None
) -> None:
    """Write index.html and its data: the first `LIMIT` images that are done or failed.

    Args:
        model: its name, which the page shows.
        base: address of the folder of the images where that is another one; ends in a slash.
        spec: what was loaded, for the command that draws an image again; None is the embedded model.
    """
    page = (files("genpipe.render") / "gallery.html").read_text(encoding="utf-8")
    write_lines(
        root / ".genpipe" / "gallery.js",
        _script(
            journal,
            suffix,
            {"title": root.name, "model": model, "base": base, "command": _options(spec or ModelSpec())},
        ),
    )
    write_lines(root / "index.html", [page])


def _script(journal: Journal, suffix: str, head: dict[str, Any]) -> Iterator[str]:
    head |= {"limit": LIMIT, "settings": {}, "commands": {}}
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
                shown = _shown(entry, journal.settings(entry.settings), suffix)
                yield f"{json.dumps(shown, separators=(',', ':'))},\n"
    yield "];\n"
    for number in sorted(settings):
        values = journal.settings(number)
        yield f"GALLERY.settings[{number}] = {json.dumps(values)};\n"
        yield f"GALLERY.commands[{number}] = {json.dumps(_options(recorded_request(values)))};\n"


def _shown(entry: Entry, settings: dict[str, Any], suffix: str) -> dict[str, Any]:
    """What the page shows of an image; seeds are text, since JavaScript rounds numbers above 2⁵³."""
    shown: dict[str, Any] = {
        "id": entry.id.hex(),
        "prompt": entry.prompt,
        "seed": str(entry.seed),
        "line": entry.line,
        "settings": entry.settings,
    }
    if entry.extra:
        ours = {"seed", "line", "id", "score", *settings}
        shown["extra"] = {f"row_{key}" if key in ours else key: value for key, value in entry.carried.items()}
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


def _options(values: Request | ModelSpec) -> str:
    """Write the options that ask a command for these fields; those that say the default are left out."""
    kind, words = type(values), []
    for name, described in settings_of(kind).items():
        value = getattr(values, name)
        if not described.draws or name in ("prompt", "seed", "width") or value == defaults_of(kind).get(name, ...):
            continue
        flags = described.flags or (f"--{name.replace('_', '-')}",)
        flag = next(flag for flag in flags if flag.startswith("--"))
        text = described.kind.write(value)
        if name == "height" and isinstance(values, Request):
            flag, text = "--size", f"{values.width}x{value}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            text = text.removesuffix(".0") if isinstance(value, float) else text
            words += [f"{flag}={shlex.quote(text)}"] if text.startswith("-") else [flag, shlex.quote(text)]
    return " ".join(words)
