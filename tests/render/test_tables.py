"""Tables as programs write them, and broken ones, of which every whole row is read."""

import csv
import io
import random
import time

import pytest

from genpipe.render.lines import read_lines
from genpipe.render.tables import Record, read_table


def table(text: str) -> list[Record]:
    return list(read_table(read_lines(io.BytesIO(text.encode()), "t.csv"), "t.csv"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_pythons_csv_module_writes_is_read_back(separator, end):
    rng = random.Random(0)
    pieces = ["a", " b", ",", ";", "\t", '"', "\n", "\n\n", "é", "'", "\\", "--"]
    for _ in range(200):
        rows = [["".join(rng.choices(pieces, k=rng.randrange(6))).strip() or "x" for _ in range(3)] for _ in range(4)]
        file = io.StringIO(newline="")
        # Only so does it quote line breaks of other kinds.
        writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([["prompt", "seed", "mood"], *rows])
        found = table(file.getvalue())
        assert [list(row.values.values()) for row in found] == rows, file.getvalue()


def test_lines_are_numbered_where_rows_begin():
    found = table('prompt,seed\n"a\n\nb",1\n\nc,2\n')
    assert [(row.line, row.values) for row in found] == [
        (2, {"prompt": "a\n\nb", "seed": "1"}),
        (6, {"prompt": "c", "seed": "2"}),
    ]


@pytest.mark.parametrize("header", ["prompt;seed", '"prompt"; "seed"', "Prompt;Seed", "seed,x;prompt"])
def test_semicolons_where_the_first_line_leaves_no_doubt(header):
    assert len(table(f"{header}\na;b\n")[0].values) == 2


@pytest.mark.parametrize("header", ["prompt,a;prompt", "prompt;a,prompt", "prompt\tx;prompt"])
def test_a_first_line_that_leaves_a_doubt_is_refused(header):
    with pytest.raises(ValueError, match=r"may be separated by a (comma|semicolon) or a"):
        table(f"{header}\na;b\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,size\na,b\n", "no column named prompt: its first line reads 'name,size'"),
        ("prompt,seed,seed\na,1,2\n", "more than one column named 'seed'"),
        ('prompt,"seed\na,1\n', "no column named prompt"),
        ("x" * 200_000 + ",prompt\n", "no column named prompt"),
        ("x" * (2 << 20), "line 1 of t.csv cannot be read: it is longer than"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        table(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,b,c", "it has 3 values for 2 columns: quote those with commas"),
        ('"a"b,1', "after a closing quote a comma must follow"),
        ("x" * 200_000 + ",1", "a value is longer than"),
        ("x" * (1 << 20), "it is longer than"),
    ],
)
def test_a_broken_row_says_why_and_the_others_are_read(row, reason):
    found = table(f"prompt,seed\nbefore,1\n{row}\nafter,2\n")
    assert [one.line for one in found] == [2, 3, 4] and reason in found[1].error
    assert [one.values.get("prompt") for one in found] == ["before", None, "after"]


@pytest.mark.parametrize("count", [3, 20_000])
def test_a_quote_that_nothing_closes_costs_its_own_row(count):
    rows = "".join(f"row {k},{k}\n" for k in range(count))
    found = table(f'prompt,seed\n"open,1\n{rows}')
    assert found[0].line == 2 and "quote" in found[0].error
    assert [row.values["prompt"] for row in found[1:]] == [f"row {k}" for k in range(count)]


def test_an_unreadable_line_inside_of_quotes_ends_its_row():
    data = b'prompt,seed\n"open\ncaf\xe9\nmore,1\n'
    found = list(read_table(read_lines(io.BytesIO(data), "t"), "t"))
    assert [(row.line, bool(row.error)) for row in found] == [(2, True), (3, True), (4, False)]


def test_rows_of_blanks_are_left_out_and_blank_values_at_the_end_too():
    found = table("prompt;seed\na; 1;;\n;;;\n\n;\nb;2\n")
    assert [row.values for row in found] == [{"prompt": "a", "seed": "1"}, {"prompt": "b", "seed": "2"}]


def test_a_column_without_a_name_is_warned_of_once():
    with pytest.warns(UserWarning, match=r"t\.csv: column 1 has no name and is left out") as said:
        found = table(",prompt\n0,a\n1,b\n")
    assert [row.values for row in found] == [{"prompt": "a"}, {"prompt": "b"}] and len(said) == 1


@pytest.mark.parametrize("line", ['"x', '""""', '"a""', 'x"y', '"a",'])
def test_tables_full_of_quotes_are_read_in_time(line):
    started = time.process_time()
    table("prompt,seed\n" + f"{line}\n" * 50_000)
    assert time.process_time() - started < 10
