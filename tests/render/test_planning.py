"""From rows to pictures: seeds that nothing else moves, settings that are complete, names that are unique."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from genpipe.fields import defaults_of
from genpipe.render.journal import DONE, PENDING, Entry, Journal
from genpipe.render.planning import Planner
from genpipe.render.rows import Row, read_rows
from genpipe.request import SETTINGS, Request
from tests.render.conftest import MODEL


@pytest.fixture
def journal(tmp_path: Path):
    made = Journal(tmp_path / "journal.sqlite")
    yield made
    made.close()


def plan(journal: Journal, rows: Iterable[Any], **options: Any) -> list[Entry]:
    planner = Planner(journal, MODEL, **{"identity": {"fingerprint": "f"}, "settings": {}, **options})
    planner.plan(read_rows(list(rows)))
    return journal.entries()


def test_a_bare_prompt_gets_the_models_defaults(journal):
    (entry,) = plan(journal, ["a ship"])
    defaults = {name: value for name, value in defaults_of(Request).items() if name in SETTINGS}
    assert journal.settings(entry.settings) == {
        **defaults,
        "loras": [],
        "control": [],
        "arguments": [],
        **MODEL.defaults[""],
    }
    assert (entry.prompt, entry.line, entry.state) == ("a ship", 1, PENDING)


def test_a_row_goes_before_the_options_and_they_before_the_model(journal):
    entries = plan(
        journal, [{"prompt": "a", "steps": 5}, "b"], settings={"steps": 3, "width": 64, "sampler": "Euler a"}
    )
    assert [journal.settings(entry.settings)["steps"] for entry in entries] == [5, 3]
    assert {journal.settings(entry.settings)["width"] for entry in entries} == {64}
    assert {journal.settings(entry.settings)["sampler"] for entry in entries} == {"euler_a"}


def test_two_plans_of_the_same_rows_agree(journal, tmp_path):
    rows = ["a", {"prompt": "a", "mood": 1}, "a", {"prompt": "b", "n": 3}]
    first = plan(journal, rows)
    other = Journal(tmp_path / "other.sqlite")
    assert [entry.id for entry in plan(other, rows)] == [entry.id for entry in first]
    other.close()


def test_an_inserted_or_moved_row_changes_no_other_picture(journal, tmp_path):
    rng = random.Random(0)
    rows = [rng.choice(["a", "b", {"prompt": "a", "steps": 3}, {"prompt": "c", "file_name": "c"}]) for _ in range(60)]
    before = {entry.id for entry in plan(journal, rows)}
    shuffled = [*rows, "new one"]
    rng.shuffle(shuffled)
    other = Journal(tmp_path / "other.sqlite")
    after = {entry.id for entry in plan(other, shuffled)}
    other.close()
    assert len(before) == 60 and after > before and len(after) == 61


def test_identical_rows_are_different_pictures(journal):
    entries = plan(journal, ["a"] * 5000)
    assert len({entry.seed for entry in entries}) == len(entries) == 5000


def test_rows_that_differ_in_carried_fields_have_seeds_of_their_own(journal):
    rows = [{"prompt": "a", "mood": 1}, {"prompt": "a", "mood": 2}, {"prompt": "a", "file_name": "x"}, "a"]
    assert len({entry.seed for entry in plan(journal, rows)}) == 4


def test_more_pictures_a_row_keep_the_first(journal, tmp_path):
    (one,) = plan(journal, ["a"])
    other = Journal(tmp_path / "other.sqlite")
    many = plan(other, [{"prompt": "a", "n": 4}])
    other.close()
    assert many[0].id == one.id
    assert [entry.seed - one.seed for entry in many] == [0, 1, 2, 3]


def test_a_given_seed_counts_upwards_and_wraps(journal):
    entries = plan(journal, [{"prompt": "a", "seed": 2**64 - 1, "n": 2}])
    assert [entry.seed for entry in entries] == [2**64 - 1, 0]


def test_a_seed_of_minus_one_is_drawn_as_if_it_were_left_out(journal, tmp_path):
    (one,) = plan(journal, [{"prompt": "a", "seed": -1}])
    other = Journal(tmp_path / "other.sqlite")
    assert next(entry.id for entry in plan(other, ["a", "a"])) == one.id and one.seed > 0
    other.close()
    assert [entry.seed for entry in plan(journal, [{"prompt": "a", "seed": -1}], seeds=[3, 70])] == [3, 70]


def test_seeds_for_every_row(journal):
    entries = plan(journal, ["a", {"prompt": "b", "seed": 9}], seeds=[3, 70])
    assert [(entry.prompt, entry.seed) for entry in entries] == [("a", 3), ("a", 70), ("b", 9)]


def test_a_picture_that_is_asked_for_twice_is_one(journal):
    planner = Planner(journal, MODEL, identity={}, settings={})
    planner.plan(read_rows([{"prompt": "a", "seed": 1}, "b", {"prompt": "a", "seed": 1}]))
    assert (planner.asked, len(journal.entries())) == (3, 2)
    assert journal.entries()[0].line == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "width": 10**9}, "width must be a whole number from 1 to 8192"),
        ({"prompt": "a", "width": 33}, "width must be a multiple of 4"),
        ({"prompt": "a", "steps": "many"}, "steps must be"),
        ({"prompt": "a", "steps": True}, "steps must be"),
        ({"prompt": "a", "seed": -2}, "seed must be"),
        ({"prompt": "a", "n": 0}, "n must be"),
        ({"prompt": "a", "n": 10**9}, "n must be"),
        ({"prompt": "a", "sampler": "eulr"}, "did you mean"),
        ({"prompt": "a", "clip_skip": 3}, "clip_skip 3 is out of range: 0 to 2"),
        ({"prompt": "a", "file_name": 3}, "file_name must be text"),
        ({"prompt": 7}, "prompt must be text"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"mood": 1}, "it has no prompt"),
        ({"prompt": "a", "mood": [float("nan")]}, "its other fields are no JSON"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_noted_and_the_others_planned(journal, row, reason):
    entries = plan(journal, ["before", row, "after"])
    assert [entry.prompt for entry in entries] == ["before", "after"]
    ((line, why, text),) = journal.rejects()
    assert line == 2 and reason in why and text


def test_strict_stops_at_the_first(journal):
    with pytest.raises(ValueError, match="line 2: it has no prompt"):
        plan(journal, ["a", {"mood": 1}], strict=True)


def test_a_true_is_not_a_one_that_was_checked_before(journal):
    entries = plan(journal, [{"prompt": "a", "steps": 1}, {"prompt": "a", "steps": True}])
    assert len(entries) == 1


def test_the_same_name_twice_gets_a_number(journal):
    rows: list[dict] = [
        {"prompt": prompt, "file_name": name} for prompt, name in (("a", "x.png"), ("b", "X"), ("c", "y"))
    ]
    rows.append({"prompt": "d", "file_name": "z", "n": 3})
    entries = plan(journal, rows)
    assert [entry.name for entry in entries] == ["x.png", "X-2.png", "y.png", "z.png", "z-2.png", "z-3.png"]


def test_names_that_clash_on_some_disk_get_numbers(journal):
    names = ["É.png", "é.png", "E\u0301", "a.png", "a.png/b.png", "A.png/b.png", "Dir/x", "dir/X"]
    entries = plan(journal, [{"prompt": str(k), "file_name": name} for k, name in enumerate(names)])
    assert [entry.name for entry in entries] == [
        *("É.png", "é-2.png", "É-3.png", "a.png", "a_png/b.png", "A_png/b-2.png", "Dir/x.png", "dir/X-2.png")
    ]
    again = plan(journal, [{"prompt": str(k), "file_name": name} for k, name in enumerate(names)])
    assert [entry.name for entry in again] == [entry.name for entry in entries]


def test_long_names_that_begin_alike_stay_apart(journal):
    entries = plan(journal, [{"prompt": str(k), "file_name": "ж" * 150 + str(k)} for k in range(3)])
    names = [entry.name or "" for entry in entries]
    assert names[0] == "ж" * 100 + ".png" and names[1:] == [f"{'ж' * 99}-{k}.png" for k in (2, 3)]


def test_a_changed_row_takes_its_name_over(journal):
    plan(journal, [{"prompt": "a", "file_name": "x"}, {"prompt": "b", "file_name": "y"}])
    with journal:
        journal.done([(1, 5, b"hash", None), (2, 5, b"hash", None)])
    entries = plan(journal, [{"prompt": "changed", "file_name": "x"}, {"prompt": "b", "file_name": "y"}])
    assert [(entry.prompt, entry.name, entry.state) for entry in entries] == [
        ("b", "y.png", DONE),
        ("changed", "x.png", PENDING),
    ]
    assert len(journal.entries(plan=False)) == 2


def test_a_row_that_went_away_stays_done_but_is_not_planned(journal):
    plan(journal, ["a", "b"])
    with journal:
        journal.done([(1, 5, b"hash", None), (2, 5, b"hash", None)])
    assert [entry.prompt for entry in plan(journal, ["b"])] == ["b"]
    assert len(journal.entries(plan=False, state=DONE)) == 2


def test_other_fields_are_carried_through(journal):
    (entry,) = plan(journal, [{"prompt": "a", "mood": "é", "deep": {"b": 1, "a": [None]}}])
    assert entry.extra == '{"deep":{"a":[null],"b":1},"mood":"é"}'


def test_unreadable_rows_keep_their_lines(journal):
    Planner(journal, MODEL, identity={}, settings={}).plan(
        [Row(1, {"prompt": "a"}), Row(7, {}, "it is broken", "text")]
    )
    assert list(journal.rejects()) == [(7, "it is broken", "text")]
