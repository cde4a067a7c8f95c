"""The journal keeps what it was told, and refuses what is not its own."""

import sqlite3

import pytest

from genpipe.render.journal import DONE, FAILED, PENDING, Journal


def picture(number: int, **changes) -> tuple:
    values = {"seed": number, "asked_name": None, "extra": None, **changes}
    return (number.to_bytes(16), number, 1, f"p{number}", values["seed"], values["asked_name"], values["extra"])


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "j.sqlite")
    made.settings_number({"steps": 1, "guidance_scale": 1.0, "height": 32, "width": 32})
    made.begin_plan()
    made.add([picture(number) for number in range(1, 6)])
    made.end_plan("hash")
    yield made
    made.close()


def test_what_was_noted_is_there_after_opening_again(journal):
    with journal:
        journal.done([(1, 10, b"h", '{"seed": 3}')])
        journal.failed([(2, "no memory")])
    again = Journal(journal.path)
    entries = again.entries()
    again.close()
    assert [entry.state for entry in entries] == [DONE, FAILED, PENDING, PENDING, PENDING]
    assert entries[0][-3:] == (10, b"h", '{"seed": 3}') and entries[1].detail == "no memory"
    assert journal.counts() == {DONE: 1, FAILED: 1, PENDING: 3}


def test_a_transaction_is_whole_or_nothing(journal):
    with pytest.raises(RuntimeError), journal:
        journal.failed([(1, "x")])
        raise RuntimeError
    assert journal.counts()[FAILED] == 0


def test_windows_are_all_pictures_in_order(journal):
    windows = list(journal.windows(size=2))
    assert [len(window) for window in windows] == [2, 2, 1]
    assert [entry.number for window in windows for entry in window] == [1, 2, 3, 4, 5]


def test_seeds_of_64_bits_come_back(journal):
    journal.begin_plan()
    journal.add([picture(9, seed=2**64 - 1), picture(8, seed=2**63)])
    journal.end_plan(None)
    assert [entry.seed for entry in journal.entries()] == [2**64 - 1, 2**63]


def test_a_plan_that_did_not_end_has_no_source(journal):
    assert journal.get("source") == "hash"
    journal.begin_plan()
    again = Journal(journal.path)
    assert again.get("source") is None
    again.close()


def test_of_pictures_asked_for_twice_the_first_stays(journal):
    journal.begin_plan()
    journal.add([picture(2), picture(1)])
    journal.add([(picture(1)[0], 99, *picture(1)[2:]), picture(3)])
    journal.end_plan(None)
    assert [(entry.id[-1], entry.line) for entry in journal.entries()] == [(2, 2), (1, 1), (3, 3)]


def test_a_plan_that_broke_off_is_made_anew(journal):
    journal.begin_plan()
    journal.add([picture(7), picture(8)])
    again = Journal(journal.path)
    again.begin_plan()
    again.add([picture(8), picture(9)])
    again.end_plan(None)
    assert [entry.line for entry in again.entries(plan=False)] == [8, 9]
    again.close()


@pytest.mark.parametrize("whole", [True, False])
def test_a_new_plan_keeps_what_is_drawn(journal, whole):
    journal.done([(2, 10, b"h", None)])
    journal.begin_plan()
    journal.add([picture(9), picture(2)])
    if whole:
        journal.end_plan(None)
    again = Journal(journal.path)
    again.begin_plan()
    again.add([picture(2), picture(9), picture(2), picture(10)])
    again.end_plan(None)
    assert [(entry.line, entry.state) for entry in again.entries()] == [(2, DONE), (9, PENDING), (10, PENDING)]
    again.close()


def test_reset_forgets(journal):
    journal.failed([(1, "x")])
    journal.reset([1])
    assert journal.entries()[0].state == PENDING and journal.entries()[0].detail is None


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "j.sqlite").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        Journal(tmp_path / "j.sqlite")


def test_another_version_is_refused(journal):
    journal.set("schema", 99)
    with pytest.raises(ValueError, match="version 99"):
        Journal(journal.path)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="cannot be read or written: unable to open"):
        Journal(tmp_path / "missing" / "j.sqlite")


def test_it_is_a_database_that_others_can_check(journal):
    with sqlite3.connect(journal.path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
