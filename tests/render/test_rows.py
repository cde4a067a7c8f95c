"""Rows out of every kind of file, and out of files that are broken in every way."""

import io
import json
import sys
from pathlib import Path

import pytest

from genpipe import Request
from genpipe.render.lines import MAX_LINE
from genpipe.render.rows import parse_seeds, read_rows


def rows(path: Path, content: bytes | str) -> list:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(path))


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    found = rows(tmp_path / "a.txt", "# comment\n\n a ship \r\nкорабль\n")
    assert [(row.line, row.fields) for row in found] == [(3, {"prompt": "a ship"}), (4, {"prompt": "корабль"})]


def test_the_last_line_needs_no_end(tmp_path):
    assert [row.fields["prompt"] for row in rows(tmp_path / "a.txt", "one\ntwo")] == ["one", "two"]


def test_lines_of_a1111(tmp_path):
    line = '--prompt "a \\"tall\\" ship" --negative_prompt "fog, rain" --steps 20 --cfg_scale 5.5 --seed 7 --sampler_name "Euler a"'
    (row,) = rows(tmp_path / "a.txt", line)
    assert row.fields == {
        "prompt": 'a "tall" ship',
        "negative_prompt": "fog, rain",
        "steps": 20,
        "guidance_scale": 5.5,
        "seed": 7,
        "sampler": "Euler a",
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('--prompt "a ship', "quotes"),
        ("--prompt ship --step 3", "did you mean --steps?"),
        ("--prompt ship --size 5y", "'5y' is not a size"),
        ("--prompt ship --steps", "--steps has no value"),
        ("--prompt ship --steps many", "steps must be a whole number, not 'many'"),
    ],
)
def test_a_broken_line_of_a1111_says_why(tmp_path, line, reason):
    (row,) = rows(tmp_path / "a.txt", line)
    assert reason in row.error and row.text == line and row.fields == {}


def test_json_lines_keep_their_types_and_unknown_fields(tmp_path):
    text = '{"prompt": "a", "seed": 18446744073709551615, "mood": [1, null]}\n{"text": "b", "num_inference_steps": 3, "width": null}'
    first, second = rows(tmp_path / "a.jsonl", text)
    assert first.fields == {"prompt": "a", "seed": 2**64 - 1, "mood": [1, None]}
    assert second.fields == {"prompt": "b", "steps": 3}


@pytest.mark.parametrize(
    "bad",
    [
        *('{"prompt": }', '{"prompt": "a"} {"prompt": "b"}', "[1]", "nonsense", '{"a": ' * 20000),
        *('{"prompt": "a", "prompt": "b"}', '{"prompt": "a", "seed": ' + "9" * 5000 + "}"),
        '{"prompt": "a", "steps": 3, "num_inference_steps": 4}',
    ],
)
def test_a_broken_json_line_does_not_stop_the_others(tmp_path, bad):
    found = rows(tmp_path / "a.jsonl", f'{{"prompt": "a"}}\n{bad}\n{{"prompt": "c"}}\n')
    assert [row.line for row in found] == [1, 2, 3]
    assert [bool(row.error) for row in found] == [False, True, False]
    assert found[1].text == bad[:200]


def test_json_is_read_as_json_loads_reads_it(tmp_path):
    values = [{"prompt": 'é\u2028 " \\ \n', "x": 1e-7, "y": -0.0, "z": {"k": [True, False]}}, {"prompt": "", "n": 2}]
    text = "\n".join(json.dumps(value, ensure_ascii=number > 0) for number, value in enumerate(values))
    assert [row.fields for row in rows(tmp_path / "a.jsonl", text)] == values


# The lists of ../shared/cases and others of their kinds: what each has to give.
LISTS: dict[str, tuple[str, list[tuple[str, dict]]]] = {
    "mac.csv": ("prompt,seed\r\"lion\",7\r\"fish\",8\r", [("lion", {"seed": 7}), ("fish", {"seed": 8})]),
    "mac.txt": ("lion\rfish\r", [("lion", {}), ("fish", {})]),
    "mac.jsonl": ('{"prompt": "lion"}\r{"prompt": "fish", "seed": NaN}\r', [("lion", {}), ("fish", {})]),
    "paragraphs.csv": ('prompt,seed\n"a lion\n\nin the snow",7\n', [("a lion\n\nin the snow", {"seed": 7})]),
    "windows.csv": ('prompt;seed\r\n"a lion\r\n\r\nin the snow";7\r\n', [("a lion\n\nin the snow", {"seed": 7})]),
    "tabs.csv": ("Prompt\tSeed\nlion, snow\t7\n", [("lion, snow", {"seed": 7})]),
    "unquoted.txt": (
        "--prompt a lion --negative_prompt snow, trees --steps 2\n",
        [("a lion", {"negative_prompt": "snow, trees", "steps": 2})],
    ),
    "random_seed.txt": ('--prompt "a lion" --seed -1\n', [("a lion", {})]),
    "batch_size.txt": ('--prompt "a lion" --batch_size 3 --n_iter 2\n', [("a lion", {"n": 6})]),
    "size.txt": ("--prompt a lion --size 512\n", [("a lion", {"width": 512, "height": 512})]),
    "floats.csv": ("prompt,seed,steps\nlion,7.0,2.0\nfish,,\n", [("lion", {"seed": 7, "steps": 2}), ("fish", {})]),
    "before.txt": ("a lion --steps 2\n", [("a lion", {"steps": 2})]),
    "log.csv": (
        "prompt,seed,width,height,sampler,cfgs,steps,negative_prompt\na,5,64,32,Euler a,7.5,20,fog\n",
        [("a", {"seed": 5, "width": 64, "height": 32, "sampler": "Euler a", "guidance_scale": 7.5, "steps": 20, "negative_prompt": "fog"})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_other_programs_and_people_write_them(tmp_path, name):
    content, wanted = LISTS[name]
    found = rows(tmp_path / name, content)
    assert [(row.error, row.fields) for row in found] == [("", {"prompt": prompt, **more}) for prompt, more in wanted]


def test_an_option_that_is_not_ours_is_drawn_as_text_and_warned_of_once(tmp_path):
    with pytest.warns(UserWarning, match=r"--ar \(line 1\) is not an option of genpipe") as said:
        found = rows(tmp_path / "a.txt", "a lion --ar 16:9\na fish --ar 1:1\n")
    assert [row.fields["prompt"] for row in found] == ["a lion --ar 16:9", "a fish --ar 1:1"] and len(said) == 1


def test_a_csv_has_columns(tmp_path):
    text = 'prompt,steps,guidance_scale,file_name,mood\n"a ship, at sea",20,,ship.png,calm\n"two\nlines",,3.5,,\n'
    first, second = rows(tmp_path / "a.csv", text)
    assert first == (2, {"prompt": "a ship, at sea", "steps": 20, "file_name": "ship.png", "mood": "calm"}, "", "")
    assert (second.line, second.fields) == (3, {"prompt": "two\nlines", "guidance_scale": 3.5})


def test_a_csv_row_that_is_broken_says_why(tmp_path):
    found = rows(tmp_path / "a.csv", "prompt,steps\na ship, at sea,3\nb,x\nc,1\n")
    assert [row.error for row in found] == [
        "it has 3 values for 2 columns: quote those with commas",
        "steps must be a whole number, not 'x'",
        "",
    ]


def test_a_csv_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no column named prompt: its first line reads 'name,size'"):
        rows(tmp_path / "a.csv", "name,size\na,b\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be-bom"])
def test_byte_order_marks(tmp_path, encoding):
    text = "первый\nвторой Ċ\n"  # Ċ is 0A in UTF-16, as a line's end is
    data = b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be-bom" else text.encode(encoding)
    assert [row.fields["prompt"] for row in rows(tmp_path / "a.txt", data)] == ["первый", "второй Ċ"]


def test_a_line_in_another_encoding_is_named(tmp_path):
    found = rows(tmp_path / "a.txt", b"good\n" + "caf\xe9\n".encode("latin-1") + b"gut\n")
    assert [(row.line, row.error) for row in found if row.error] == [
        (2, "it is not UTF-8 text: save the file as UTF-8")
    ]
    assert [row.fields["prompt"] for row in found if not row.error] == ["good", "gut"]


def test_a_line_without_end_is_cut_and_named(tmp_path):
    found = rows(tmp_path / "a.txt", b"one\n" + b"x" * (3 * MAX_LINE) + b"\nthree\n")
    assert [row.error for row in found] == ["", f"it is longer than {MAX_LINE:,} bytes", ""]
    assert found[2].fields == {"prompt": "three"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n", "is empty"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
        ("a.jsonl", bytes(range(256)) * 8, "is not text"),
        ("a.png", b"x", "has to end in .txt, .jsonl, .csv"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path, name, content, reason):
    with pytest.raises(ValueError, match=reason):
        rows(tmp_path / name, content)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_rows(tmp_path / "missing.txt"))


@pytest.mark.parametrize("text", ["a ship\n", '{"prompt": "a ship"}\n'])
def test_standard_input_is_text_or_json_lines(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert [row.fields for row in read_rows("-")] == [{"prompt": "a ship"}]


def test_standard_input_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        list(read_rows("-"))


def test_objects_of_python():
    request = Request("c", seed=3, steps=4, guidance_scale=5, height=32, width=64)
    found = list(read_rows(["a", {"prompt": "b", "cfg_scale": 2.0}, request, 7]))
    assert found[0].fields == {"prompt": "a"}
    assert found[1].fields == {"prompt": "b", "guidance_scale": 2.0}
    assert found[2].fields["seed"] == 3 and found[2].fields["width"] == 64 and "sampler" not in found[2].fields
    assert found[3].error == "a row is of type int: give a prompt, a dict or a Request"


def test_lists_of_seeds():
    assert parse_seeds("0-3, 70") == [0, 1, 2, 3, 70]
    assert parse_seeds(f"{2**64 - 1}") == [2**64 - 1]


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", f"{2**64}", "0-2000000", "1.5"])
def test_what_is_no_list_of_seeds(text):
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(text)
