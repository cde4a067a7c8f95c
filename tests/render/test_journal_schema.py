"""A journal that is found is read as input: what no renderer wrote is refused in one line."""

import os
import random
import sqlite3
from pathlib import Path

import pytest

from genpipe.messages import LINE
from genpipe.render.journal import DONE, PENDING, Journal

SETTINGS = {"steps": 1, "guidance_scale": 1.0, "height": 32, "width": 32}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of six images: one done, one done and judged, one failed, two that wait, and one row that is wrong."""
    journal = Journal(tmp_path / "j.sqlite")
    number = journal.settings_number(SETTINGS)
    journal.begin_plan()
    journal.reject(9, "it has no prompt", "{}")
    rows = [(f"n{k}.png" if k % 2 else None, '{"mood":"calm"}' if k > 3 else None) for k in range(1, 6)]
    journal.add([(bytes([k]) * 16, k, number, f"p{k}", k, *row) for k, row in enumerate(rows, start=1)])
    journal.end_plan("hash")
    journal.set("settings", {"steps": 1})
    with journal:
        journal.done([(1, 10, b"h" * 32, None), (2, 10, b"h" * 32, '{"seed": 3, "total": 0.5, "score": {"a": 1}}')])
        journal.failed([(3, "no memory")])
    journal.close()
    return journal.path


def tampered(path: Path, statement: str) -> str:
    """What opening a journal says after somebody changed it."""
    with sqlite3.connect(path) as database:
        database.executescript(statement)
    database.close()
    with pytest.raises(ValueError, match="give a new --out") as caught:
        Journal(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < LINE + len(str(path))
    return message


def test_what_a_renderer_wrote_opens(path):
    journal = Journal(path)
    assert journal.counts() == {DONE: 2, PENDING: 2, 2: 1} and journal.get("settings") == {"steps": 1}
    assert journal.entries()[1].judged == {"seed": 3, "total": 0.5, "score": {"a": 1}}
    assert journal.entries()[4].carried == {"mood": "calm"}
    journal.close()


def older(path: Path) -> None:
    """Make a journal one of version 2."""
    with sqlite3.connect(path) as database:
        database.executescript(
            "ALTER TABLE pictures RENAME COLUMN asked_name TO wish; UPDATE meta SET value = '2' WHERE key = 'schema'"
        )
    database.close()


def test_a_journal_of_version_2_goes_on(path):
    before = Journal(path)
    entries = before.entries()
    before.close()
    older(path)
    for _ in range(2):
        journal = Journal(path)
        assert journal.entries() == entries and journal.get("schema") == 3
        journal.close()


def test_a_journal_of_version_2_is_held_to_what_a_renderer_wrote(path):
    older(path)
    assert "the file name '../x.png' of image 4" in tampered(
        path, "UPDATE pictures SET wish = '../x.png' WHERE number = 4"
    )


@pytest.mark.parametrize(
    "name",
    ["../../../escaped.png", "/etc/x.png", "a/../../x.png", "con.png", ".hidden.png", "x", "x.exe", "a.png/b.png", ""],
)
def test_a_file_name_that_is_not_safe_is_refused(path, name):
    assert f"file name {name!r} of image 4" in tampered(path, f"UPDATE pictures SET name = '{name}' WHERE number = 4")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("id = 'text'", "the id of image 4"),
        ("id = x'00'", "the id of image 4"),
        ("plan = 'one'", "the plan of image 4"),
        ("line = -1", "the line of image 4"),
        ("line = 1.5", "the line of image 4"),
        ("settings = 99", "the settings of image 4"),
        ("prompt = x'ff'", "the prompt of image 4"),
        ("seed = 'x'", "the seed of image 4"),
        ("seed = 1e300", "the seed of image 4"),
        ("asked_name = '../x.png'", "the file name"),
        ("asked_name = 5.0", "the file name"),
        ("name_key = 'other'", "the file name"),
        ("name = x'41'", "the file name of image 4"),
        ("extra = 'nonsense'", "the other fields of image 4"),
        ("extra = '[1]'", "the other fields of image 4"),
        ("extra = 3", "the other fields of image 4"),
        ("state = 7", "the state of image 4"),
        ("state = 'done'", "the state of image 4"),
        ("state = 1", "the size of image 4"),
        ("state = 1, size = 'x', sha256 = x'00'", "the size of image 4"),
        ("state = 1, size = 5, sha256 = 5", "the hash of image 4"),
        ("state = 2", "the detail of image 4"),
        ("detail = 5.5, state = 1, size = 1, sha256 = x'00'", "the score of image 4"),
        ("detail = '[]', state = 1, size = 1, sha256 = x'00'", "the score of image 4"),
        ("detail = '{\"seed\": \"x\"}', state = 1, size = 1, sha256 = x'00'", "the score of image 4"),
        ("detail = '{\"total\": \"<b>\"}', state = 1, size = 1, sha256 = x'00'", "the score of image 4"),
        ("detail = '{\"total\": NaN}', state = 1, size = 1, sha256 = x'00'", "the score of image 4"),
        ("detail = '{\"score\": 5}', state = 1, size = 1, sha256 = x'00'", "the score of image 4"),
        ("number = -4", "the number of image -4"),
    ],
)
def test_an_odd_value_of_an_image_is_named(path, change, where):
    assert where in tampered(path, f"UPDATE pictures SET {change} WHERE number = 4")


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE settings SET json = 'x'", "its settings 1"),
        ("UPDATE settings SET json = '[]'", "its settings 1"),
        ("UPDATE settings SET json = '{}'", "its settings 1: the request lacks"),
        ("UPDATE settings SET json = replace(json, '32', '\"<b>\"')", "its settings 1: height must be"),
        ("UPDATE settings SET json = replace(json, 'steps', 'stepz')", "its settings 1: a request has no stepz"),
        ("UPDATE meta SET value = 'x' WHERE key = 'plan'", "its plan"),
        ("UPDATE meta SET value = '-1' WHERE key = 'plan'", "its plan"),
        ("UPDATE meta SET value = '1' || hex(zeroblob(50)) WHERE key = 'plan'", "its plan"),
        ("UPDATE meta SET value = '[1]' WHERE key = 'settings'", "its settings"),
        ("UPDATE meta SET value = '3' WHERE key = 'source'", "its source"),
        ("UPDATE meta SET value = '" + "[" * 100_000 + "' WHERE key = 'settings'", "its settings"),
        ("UPDATE meta SET value = '1' WHERE key = 'schema'", "has version 1, and this genpipe writes version 3"),
        ("UPDATE meta SET value = '\"\x1b[2J\"' WHERE key = 'schema'", "its version"),
        ("UPDATE rejects SET line = 'x'", "the row of line 'x'"),
        ("UPDATE rejects SET reason = x'00'", "the row of line 9"),
    ],
)
def test_an_odd_value_of_another_table_is_named(path, statement, where):
    assert where in tampered(path, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE rejects",
        "DROP TABLE meta",
        "ALTER TABLE pictures ADD COLUMN mine",
        "CREATE TABLE mine (x)",
        "CREATE TRIGGER t AFTER UPDATE ON pictures BEGIN DELETE FROM pictures; END",
        "DROP TABLE settings; CREATE VIEW settings AS SELECT 1 AS number, '{}' AS json",
        "DROP TABLE meta; CREATE TABLE meta (key TEXT, value TEXT); INSERT INTO meta VALUES ('schema', '2')",
        "DROP INDEX name_keys",
        "DROP INDEX ids; CREATE INDEX ids ON pictures (line)",
    ],
)
def test_tables_that_are_not_ours_are_refused(path, statement):
    assert "is not a journal of genpipe" in tampered(path, statement)


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    message = tampered(path, "CREATE TABLE pictures (number, file); INSERT INTO pictures VALUES (1, 'x')")
    assert "is not a journal of genpipe" in message


def test_a_journal_that_broke_off_between_its_tables_and_its_index_opens(path):
    with sqlite3.connect(path) as database:
        database.execute("DROP INDEX ids")
    database.close()
    Journal(path).close()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_journal_that_was_cut_is_refused(path, part):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises((ValueError, OSError), match=str(path)):
        Journal(path)


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        Journal(tmp_path)


def test_a_pipe_in_its_place_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a file"):
        Journal(tmp_path / "pipe")


def test_random_damage_ends_in_one_line_or_in_values_that_are_sound(path):
    rng, whole = random.Random(0), path.read_bytes()
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 5, 100])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        for name in ("j.sqlite-wal", "j.sqlite-shm"):
            (path.parent / name).unlink(missing_ok=True)
        path.write_bytes(data)
        try:
            journal = Journal(path)
        except (ValueError, OSError) as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        for entry in journal.entries(plan=False):
            assert entry.name is None or ("/" not in entry.name and entry.name.endswith(".png"))
            assert journal.settings(entry.settings)["width"] >= 1 and len(entry.id) == 16
        journal.close()
    assert refused > 50
