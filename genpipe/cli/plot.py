"""`--plot steps=10,20 sampler=ddim,euler_a`: a sheet of one prompt and seed under several settings."""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from genpipe.dialects.spellings import setting_name
from genpipe.fields import settings_of
from genpipe.files import atomic_write
from genpipe.images import grid
from genpipe.messages import quoted
from genpipe.request import SETTINGS, Request

MAX_CELLS = 400
_MARGIN = 6  # pixels around a label


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes along one side of the sheet."""

    name: str
    values: tuple[Any, ...]

    def labels(self) -> list[str]:
        """What stands beside the values."""
        return [f"{self.name} {'x'.join(map(str, v[::-1])) if isinstance(v, tuple) else v}" for v in self.values]


def axis(text: str) -> Axis:
    """Read "steps=10,20,30", as argparse's `type`."""
    name, equals, values = text.partition("=")
    name = setting_name(name)
    if not equals or name not in (*SETTINGS, "seed"):
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is no side of a plot: write a setting and its values, as in steps=10,20 or sampler=ddim,euler_a"
        )
    kind = settings_of(Request)[name].kind
    try:
        read = tuple(kind.check(name, kind.read(name, value)) for value in values.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Axis(name, read)


def check_axes(axes: Sequence[Axis], given: Iterable[str]) -> None:
    """Check that axes make a sheet.

    Args:
        given: settings that other options name.

    Raises:
        ValueError: there are more than two, two of one setting, one that another option sets too, or too many values.
    """
    names = [one.name for one in axes]
    if len(names) > 2 or len(set(names)) < len(names):
        raise ValueError(f"--plot {' '.join(names)}: a sheet has two sides, one setting each")
    if twice := sorted(set(names) & set(given)):
        raise ValueError(f"--plot and another option both set {twice[0]}: leave one out")
    cells = len(list(product(*(one.values for one in axes))))
    if cells > MAX_CELLS:
        raise ValueError(f"--plot asks for {cells} images: {MAX_CELLS} at most")


def draw_plot(
    draw: Callable[..., Image.Image], axes: Sequence[Axis], settings: dict[str, Any]
) -> tuple[Image.Image, dict[str, Any]]:
    """Draw an image for each combination of values.

    Args:
        draw: draws one image of settings, given by keyword.
        axes: one, whose values make a row, or two: columns, then rows.
        settings: what all images share.

    Returns:
        The sheet, the values beside it, and what it shows, ready for JSON.
    """
    columns, rows = axes[0], axes[1] if len(axes) > 1 else None
    images, cells = [], []
    for row, value in enumerate(rows.values if rows else (None,)):
        for column, other in enumerate(columns.values):
            own = {columns.name: other, **({rows.name: value} if rows else {})}
            image = draw(**{**settings, **own})
            images.append(image)
            cells.append({"row": row, "column": column, **own, "genpipe": json.loads(image.info["genpipe"])})
    described = [{"name": one.name, "values": list(one.values)} for one in axes]
    return labelled(images, columns.labels(), rows.labels() if rows else []), {"axes": described, "cells": cells}


def labelled(images: Sequence[Image.Image], columns: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """Lay images out in rows, with a label above each column and, where there are rows' labels, one left of each row."""
    sheet = grid(images, len(columns))
    width, height = sheet.width // len(columns), sheet.height // max(1, len(rows))
    font = ImageFont.load_default(max(10, min(width, height) // 16))
    sizes = {text: font.getbbox(text) for text in (*columns, *rows)}
    left = 2 * _MARGIN + max(int(sizes[text][2]) for text in rows) if rows else 0
    top = 2 * _MARGIN + max(int(sizes[text][3]) for text in columns)
    wide = max(width, 2 * _MARGIN + max(int(sizes[text][2]) for text in columns))
    page = Image.new("RGB", (left + wide * len(columns), top + sheet.height), "white")
    page.info |= sheet.info  # that a machine made it
    pen = ImageDraw.Draw(page)
    for number, text in enumerate(columns):
        x = left + number * wide
        cell = sheet.crop((number * width, 0, (number + 1) * width, sheet.height))
        page.paste(cell, (x + (wide - width) // 2, top))
        pen.text((x + wide / 2, top / 2), text, "black", font, anchor="mm")
    for number, text in enumerate(rows):
        pen.text((left / 2, top + (number + 0.5) * height), text, "black", font, anchor="mm")
    return page


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, wholly or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
