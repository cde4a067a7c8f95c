"""The time in which a device has had work, with a clock that is a number."""

from genpipe.workers.busy import Busy


def test_overlapping_work_counts_once():
    now = [0.0]
    busy = Busy(lambda: now[0])
    with busy:
        now[0] = 2.0
        with busy:
            now[0] = 3.0
        now[0] = 5.0
    now[0] = 10.0
    assert busy.take() == 5.0 and busy.take() == 0.0


def test_what_is_still_going_on_is_counted_up_to_now():
    now = [0.0]
    busy = Busy(lambda: now[0])
    with busy:
        now[0] = 2.0
        assert busy.take() == 2.0
        now[0] = 3.0
    now[0] = 9.0
    assert busy.take() == 1.0
