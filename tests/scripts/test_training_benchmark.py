"""What the benchmark of training prints; that it measures is a test of the GPU benchmark, which calls it."""

import time

import pytest

from scripts.benchmark.training import Figures, Watched, main, table


def test_the_table_has_a_row_per_part() -> None:
    figures = Figures("Some card", 256, 40.0, 10240.0, {"forward": 5.0, "backward": 15.0, "all else": 5.0})
    lines = table(figures).splitlines()
    assert lines[0] == "Some card, batch 256: 40 steps/s, 10,240 images/s"
    assert lines[4:] == ["| forward | 5.0 | 20.0% |", "| backward | 15.0 | 60.0% |", "| all else | 5.0 | 20.0% |"]


def test_what_is_called_between_two_steps_is_counted_to_neither() -> None:
    budget = Watched(3, {1: lambda: time.sleep(0.05)})
    assert [budget.fraction(step, 0.0) for step in (0, 1, 1, 2, 3)] == [0, 1 / 3, 1 / 3, 2 / 3, 1]
    assert budget.began[1] - budget.ended[1] >= 0.05
    assert budget.ended[1] - budget.began[0] < 0.05 and budget.ended[2] - budget.began[1] < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch 0 is too few: use 1 or more"),
        (["--steps", "-1"], "--steps -1 is too few: use 1 or more"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
