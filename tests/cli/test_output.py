"""Errors become lines: short, printable, with the value and what to do."""

import errno
import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from genpipe.cli.output import complain, explain, say, show_warning
from genpipe.messages import LINE


def raised(action) -> BaseException:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def test_a_line_is_short_and_printable_whatever_it_tells(capsys):
    for text in ("x" * 300_000, "\x1b[2J\x07" * 9999, "a\nb\rc", "\ud800", ""):
        complain(ValueError(text))
        show_warning(text)
        say("failed", text)
        for line in capsys.readouterr().err.splitlines():
            assert line.startswith("genpipe: ") and line.isprintable() and len(line) <= LINE


def test_stderr_that_cannot_be_written_is_no_error(monkeypatch):
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    say("error", "unheard")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    say("error", "unheard")


def test_errors_of_the_system_name_the_file_and_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explain(raised(lambda: os.stat("a.png"))) == f"a.png: No such file or directory (in {tmp_path})"
    assert explain(raised(lambda: os.stat("/a/b.png"))) == "/a/b.png: No such file or directory"
    assert explain(raised(lambda: os.stat(b"\xff"))).startswith("\udcff: No such file")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.png")
    assert explain(full) == "a.png: No space left on device; free some space, or choose another place"
    assert explain(OSError(errno.ENOSPC, "No space left on device")).startswith("No space left on device; free some")
    assert explain(OSError("plain")) == "plain"


def test_a_working_directory_that_is_gone_is_told(tmp_path, monkeypatch):
    here = tmp_path / "gone"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    line = explain(raised(Path.cwd))
    assert line == "No such file or directory: the working directory is gone, change to one that is there"
    assert "a.png: No such" in explain(raised(lambda: os.stat("a.png"))) and "directory is gone" in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory: ask for a smaller size"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
                      "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"),
         "out of memory (64.0 GiB were asked for): ask for a smaller size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"),
         "out of memory (20.00 GiB were asked for)"),
        (ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers.models"), "package 'tokenizers' is missing"),
        (ImportError("cannot import name 'x' from 'y'"), "a Python package does not fit: cannot import name"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)  # fmt: skip
def test_what_libraries_say_is_said_in_words_that_help(error, says):
    assert says in explain(error)


def test_text_that_is_none_is_told_with_what_to_do():
    assert explain(raised(lambda: "a-ж".encode("ascii"))) == (
        "'ж' cannot be written as ascii: use a UTF-8 locale (LANG=C.UTF-8), or set PYTHONUTF8=1"
    )
    assert explain(raised(lambda: b"a\xff".decode())) == r"the bytes b'\xff' are not utf-8: save the file as UTF-8"
    assert explain(raised(lambda: json.loads("<html>"))) == "'<html>' is not JSON: Expecting value at line 1, column 1"


def test_a_file_name_of_thousands_of_characters_is_shortened() -> None:
    line = explain(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000))
    assert len(line) < 200 and "(5,000 characters)" in line and line.endswith("give a shorter name")
