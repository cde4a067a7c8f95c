"""Progress: a bar for people, few lines for logs, and nothing that could stop the work."""

import io
import sys

import pytest

from genpipe.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(total: int | None, counts: int, seconds: float, **options) -> list[str]:
    """What a log holds after so many units of so many seconds each."""
    stream, clock = io.StringIO(), Clock()
    with Progress(total, stream=stream, clock=clock, **options) as progress:
        for _ in range(counts):
            clock.now += seconds
            progress.update()
    return stream.getvalue().splitlines()


def test_short_work_leaves_a_log_empty():
    assert lines(30, 30, 0.3) == []


def test_a_log_gets_a_line_per_five_percent_of_long_work():
    said = lines(1000, 1000, 1.0, unit="image")
    assert len(said) == 20
    assert said[0] == "genpipe: 50 of 1,000 images, 5 %, 1.0 images/s, about 16 min left"
    assert said[-1] == "genpipe: 1,000 of 1,000 images, 100 %, 1.0 images/s"


def test_a_log_gets_a_line_per_ten_seconds_of_fast_work():
    assert [line.split(" of ")[0] for line in lines(100, 100, 0.25)] == ["genpipe: 40", "genpipe: 80"]


def test_slow_units_are_told_in_seconds():
    assert lines(4, 1, 7200.0)[0] == "genpipe: 1 of 4 steps, 25 %, 7200.0 s per step, about 6 h 00 min left"


def test_without_a_total_a_line_every_ten_seconds():
    assert lines(None, 25, 1.0, label="run") == ["run: 10 steps, 1.0 steps/s", "run: 20 steps, 1.0 steps/s"]


def test_what_was_done_before_does_not_count_as_speed():
    (line,) = lines(100, 10, 1.0, initial=50)
    assert line == "genpipe: 60 of 100 steps, 60 %, 1.0 steps/s, about 40 s left"


def test_a_share_and_a_note_may_be_given():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock, unit="step")
    for share in (0.01, 0.04, 0.2):
        clock.now += 20
        progress.update(share=share, note=f"loss {share}")
    assert stream.getvalue() == "genpipe: 3 steps, 20 %, 20.0 s per step, about 4 min left, loss 0.2\n"


def test_a_total_may_come_late():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock)
    progress.total = 4
    clock.now += 10
    progress.update()
    assert stream.getvalue().startswith("genpipe: 1 of 4 steps, 25 %, 10.0 s per step")


def test_a_terminal_gets_a_bar_that_goes_away():
    stream = Terminal()
    with Progress(3, unit="image", stream=stream) as progress:
        progress.update(3, note="loss 1")
        progress.write("one failed")
    shown = stream.getvalue()
    assert "3/3" in shown and "one failed\n" in shown and "genpipe:" not in shown
    assert shown.rpartition("\r")[0].rpartition("\r")[2].strip() == ""  # the bar is overwritten by blanks


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_shows_only_what_is_written(stream):
    made, clock = stream(), Clock()
    with Progress(2, quiet=True, stream=made, clock=clock) as progress:
        clock.now += 100
        progress.update()
        progress.write("one failed")
    assert made.getvalue() == "one failed\n"


def test_a_stream_that_is_gone_stops_nothing(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    clock = Clock()
    progress = Progress(2, stream=closed, clock=clock)
    clock.now += 100
    progress.update()
    progress.write("line")
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(2) as progress:
        progress.update()
        progress.write("line")
    assert capsys.readouterr().out == ""
