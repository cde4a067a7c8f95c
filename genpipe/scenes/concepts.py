"""The things that the procedural world can show: a row of `concepts.tsv` for each.

A sprite's recipe is an emoji, `@drawing` for one of our own, or `@costume:emoji` (scripts/make/sprites.py); several
recipes, separated by spaces, are variants of one concept, the canonical one first.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Concept:
    """A thing that can be drawn: a row of `concepts.tsv`."""

    name: str  # English, as a person types it; also the identifier
    recipes: tuple[str, ...]
    category: str
    home: str  # the setting of the canonical image
    core: bool  # asked for more often, and drawn so in training (`world.Pool`)
    synonyms: tuple[str, ...]


@cache
def concepts() -> dict[str, Concept]:
    """Return every concept by name, in the order of the table."""
    rows = csv.DictReader(
        (files("genpipe.scenes") / "concepts.tsv").read_text(encoding="utf-8").splitlines(),
        delimiter="\t",
        quoting=csv.QUOTE_NONE,
    )
    return {
        row["name"]: Concept(
            name=row["name"],
            recipes=tuple(row["emoji"].split()),
            category=row["category"],
            home=row["home"],
            core=row["core"] == "1",
            synonyms=tuple(word.strip() for word in (row["synonyms"] or "").split(",") if word.strip()),
        )
        for row in rows
    }


@cache
def names(core: bool = False) -> tuple[str, ...]:
    """Return the names of all concepts, or of the core ones, in the order of the table."""
    return tuple(c.name for c in concepts().values() if c.core or not core)
