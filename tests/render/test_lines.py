"""Lines of files of every encoding, kind of end and length."""

import io
import random

import pytest

from genpipe.render.lines import MAX_LINE, Line, read_lines


def lines(data: bytes) -> list[Line]:
    return list(read_lines(io.BytesIO(data), "file"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom"])
def test_lines_end_as_python_ends_them(encoding):
    rng = random.Random(0)
    pieces = ["a", "корабль", "\r", "\n", "\r\n", "Ċ", "😀", " "]  # Ċ holds the byte of a line's end in UTF-16
    for _ in range(100):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 60))) * rng.choice([1, 1, 400])
        data = b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be-bom" else text.encode(encoding)
        wanted = io.StringIO(text, newline="").readlines()
        if "\0" in text or not text:
            continue
        assert [line for _, line, _ in lines(data)] == wanted


def test_ends_at_the_borders_of_blocks():
    for length in (4094, 4095, 4096, (1 << 18) + 4094, (1 << 18) + 4095, (1 << 18) + 4096):
        assert [text for _, text, _ in lines(b"x" * length + b"\r\ny\rz")] == ["x" * length + "\r\n", "y\r", "z"]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("character", ["x", "ж"])
def test_a_line_that_is_too_long_is_cut_and_the_next_are_read(end, character):
    data = f"one{end}{character * (3 * MAX_LINE)}{end}three{end}".encode()
    found = lines(data)
    assert [number for number, _, _ in found] == [1, 2, 3]
    assert found[1][2] == f"it is longer than {MAX_LINE:,} bytes" and len(found[1][1]) <= MAX_LINE
    assert (found[0][1], found[2][1]) == (f"one{end}", f"three{end}")


@pytest.mark.parametrize("data", [b"caf\xe9", "x\ud800".encode("utf-8", "surrogatepass")])
def test_what_is_not_utf8_is_named_by_its_line(data):
    found = lines(b"good\n" + data + b"\nalso\n")
    assert [error for _, _, error in found] == ["", "it is not UTF-8 text: save the file as UTF-8", ""]


@pytest.mark.parametrize("bad", [b"\x00\xd8a\0", b"a"])
def test_broken_utf16_is_named_by_its_line(bad):
    found = lines("\ufeffone\n".encode("utf-16-le") + bad)
    assert found[0] == (1, "one\n", "") and found[1][2].startswith("it is not UTF-8")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "x".encode("utf-32"), "prompt".encode("utf-16-le")])
def test_what_is_not_text_is_refused(data):
    with pytest.raises(ValueError, match="file is not text"):
        lines(data)
