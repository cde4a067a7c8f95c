import math

from genpipe.sampling.speed import SPEEDS, Speed


def test_exact_leaves_nothing_out() -> None:
    assert SPEEDS["exact"] == Speed() and Speed().refresh == 1
    assert all(Speed().guides(ratio) for ratio in (1e-9, 1.0, math.inf))


def test_the_interval_is_open_below_and_closed_above() -> None:
    speed = Speed(guided=(0.28, 5.42))
    assert [speed.guides(ratio) for ratio in (0.0, 0.28, 0.281, 5.42, 5.43, math.inf)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip
