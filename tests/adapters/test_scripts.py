"""The table of families and what the adapter costs, on one family."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from genpipe.pipeline import Pipeline
from scripts.benchmark import adapters as benchmark
from scripts.evaluate import adapters as evaluate
from tests.adapters.conftest import families, family_named
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]
INT8 = "–" if find_spec("torchao") is None else "yes"
DRAWN = ("FLUX.1 dev", "PixArt-Σ", "Stable unCLIP")


def test_a_row_says_what_was_done(tmp_path: Path) -> None:
    rows = {"PixArt-Σ": evaluate.row(family_named("PixArt-Σ"), tmp_path)}
    assert rows["PixArt-Σ"]["text"] == rows["PixArt-Σ"]["preview"] == rows["PixArt-Σ"]["negative"] == "yes"
    assert rows["PixArt-Σ"]["image"] == "–" and rows["PixArt-Σ"]["batch seeds"] == "together"
    first, second, line = evaluate.table(rows).splitlines()
    assert (
        first.startswith("| family | text | image |") and second.startswith("| --- |") and line.startswith("| PixArt")
    )


def lines_of_the_readme(table: str) -> dict[str, str]:
    """The lines of one of its tables, by what they begin with."""
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"<!-- {table}")
    said = rest.partition("\n")[2].partition(f"\n<!-- end of {table} -->")[0]
    return {line.split(" | ")[0].removeprefix("| "): line for line in said.splitlines()}


def test_a_row_says_what_saves_and_what_does_not(tmp_path: Path) -> None:
    rows = evaluate.rows_of([family_named("PixArt-Σ"), family_named("Qwen-Image")], find=evaluate.saving)
    kept = {"prompt kept": "yes", "int8 weights": INT8}
    assert rows["PixArt-Σ"] == {**dict.fromkeys(evaluate.SAVING, "–"), **kept, "speed": "attention"}
    assert rows["Qwen-Image"] == {**dict.fromkeys(evaluate.SAVING, "yes"), **kept, "speed": "first block"}
    lines = lines_of_the_readme("savings")
    assert list(lines) == ["family", "---", *sorted((one.name for one in families()), key=str.lower)]
    told = evaluate.table({name: {**row, "int8 weights": "yes"} for name, row in rows.items()}).splitlines()
    assert told == [lines[name] for name in ("family", "---", "PixArt-Σ", "Qwen-Image")]


def test_the_readmes_table_is_what_works(loaded: Callable[[Family], Pipeline]) -> None:
    """Its cells are held to what the loaded pipelines take, and whole rows to what is drawn, as of all takes a minute."""
    lines = lines_of_the_readme("families")
    names = [one.name for one in families()]
    assert list(lines) == ["family", "---", *sorted(names, key=str.lower)]
    rows = evaluate.rows_of([family_named(name) for name in DRAWN])
    drawn = evaluate.table(rows).splitlines()
    assert drawn == [lines[name] for name in ("family", "---", *sorted(DRAWN, key=str.lower))]
    for family in families():
        cells = dict[str, str](zip(evaluate.COLUMNS, lines[family.name].strip("| ").split(" | ")[1:], strict=True))
        takes = loaded(family).traits.takes or ()
        for column, name in (("image", "image"), ("mask", "mask"), ("negative", "negative_prompt")):
            assert (cells[column] == "yes") == (name in takes), (family.name, column)


def test_what_genpipe_costs_beside_a_pipeline_is_measured(tmp_path: Path) -> None:
    found = benchmark.measure(family_named("PixArt-Σ"), tmp_path, runs=3, steps=2)
    assert found["more_ms"] == found["genpipe_ms"] - found["by_hand_ms"]
    assert found["more_ms"] < 100 * benchmark.LIMIT  # the machine may be busy; the script prints the figure
