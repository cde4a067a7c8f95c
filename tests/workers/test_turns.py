"""Batches side by side: the networks are one batch's at a time, and preparing and writing go on beside them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from genpipe.workers.messages import Result, Work
from genpipe.workers.turns import Turns


class Staged:
    """A renderer whose stages wait to be let go, and tell what goes on at the same time."""

    def __init__(self) -> None:
        self.within = {"prepare": 0, "begin": 0, "wait": 0, "finish": 0}
        self.most = dict(self.within)
        self.seen: list[tuple[str, Any]] = []
        self.lock = threading.Lock()
        self.gates = {stage: threading.Semaphore(0) for stage in self.within}

    def stage(self, stage: str, batch: Any) -> None:
        with self.lock:
            self.seen.append((stage, batch))
            self.within[stage] += 1
            self.most[stage] = max(self.most[stage], self.within[stage])
        assert self.gates[stage].acquire(timeout=20)
        with self.lock:
            self.within[stage] -= 1

    def prepare(self, tasks: Any) -> Any:
        (number,) = tasks
        self.stage("prepare", number)
        return number

    def begin(self, prepared: Any, shape: str, waiting: int, launched: Callable[[], None] = lambda: None) -> Any:
        self.stage("begin", prepared)
        if shape == "launched":
            launched()
            self.stage("wait", prepared)
        return prepared

    def finish(self, begun: Any) -> Result:
        self.stage("finish", begun)
        return Result()

    def open(self, *stages: str, times: int = 100) -> None:
        for stage in stages:
            self.gates[stage].release(times)

    def stays_away(self, event: tuple[str, Any]) -> bool:
        threading.Event().wait(0.1)
        return event not in self.seen

    def wait_for(self, *events: tuple[str, Any]) -> None:
        for _ in range(2000):
            if set(events) <= set(self.seen):
                return
            threading.Event().wait(0.005)
        raise AssertionError(f"{events} are not all among {self.seen}")


@pytest.fixture
def staged():
    made = Staged()
    yield made
    made.open("prepare", "begin", "wait", "finish")


def test_one_is_prepared_and_others_written_beside_that_in_the_networks(staged):
    turns, numbers = Turns(staged), iter(range(6))

    def take() -> Work:
        number = next(numbers)
        return Work(number, [number])  # pyright: ignore[reportArgumentType]

    staged.open("prepare")
    with ThreadPoolExecutor(4) as threads:
        drawn = [threads.submit(turns.draw, take) for _ in range(6)]
        staged.wait_for(("begin", 0), ("prepare", 1))
        assert ("prepare", 2) not in staged.seen  # one ahead, not all
        staged.open("begin", times=2)
        staged.wait_for(("finish", 0), ("finish", 1), ("begin", 2), ("prepare", 3))
        staged.open("begin", "finish")
        results = [future.result(timeout=20) for future in drawn]
    assert sorted(work.key for work, _ in results) == list(range(6)) and None not in [one for _, one in results]
    assert staged.most["begin"] == staged.most["prepare"] == 1 and staged.most["finish"] >= 2
    assert [batch for stage, batch in staged.seen if stage == "begin"] == list(range(6))


def test_the_next_batch_begins_while_the_device_is_at_the_last_steps_of_one(staged):
    turns = Turns(staged)
    works = iter([Work(k, [k], "launched") for k in range(2)])  # pyright: ignore[reportArgumentType]
    staged.open("prepare", "begin")
    with ThreadPoolExecutor(2) as threads:
        drawn = [threads.submit(turns.draw, lambda: next(works)) for _ in range(2)]
        staged.wait_for(("wait", 0), ("begin", 1), ("wait", 1))
        staged.open("wait", "finish")
        assert [future.result(timeout=20)[1] for future in drawn] == [Result()] * 2


def test_what_is_to_be_drawn_alone_is(staged):
    turns = Turns(staged)
    works = iter([Work(0, [0]), Work(1, [1], alone=True), Work(2, [2])])  # pyright: ignore[reportArgumentType]
    staged.open("prepare", "begin")
    with ThreadPoolExecutor(3) as threads:
        drawn = [threads.submit(turns.draw, lambda: next(works)) for _ in range(3)]
        staged.wait_for(("finish", 0))
        assert staged.stays_away(("prepare", 1))
        staged.open("finish", times=1)
        staged.wait_for(("finish", 1))
        assert staged.stays_away(("prepare", 2))
        staged.open("finish")
        assert [future.result(timeout=20)[1] for future in drawn] == [Result()] * 3


def test_what_is_prepared_when_it_is_drained_is_given_back(staged):
    turns = Turns(staged)
    staged.open("prepare")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(turns.draw, lambda: Work(1, [1]))  # pyright: ignore[reportArgumentType]
        staged.wait_for(("begin", 1))
        second = threads.submit(turns.draw, lambda: Work(2, [2]))  # pyright: ignore[reportArgumentType]
        staged.wait_for(("prepare", 2))
        turns.drain()
        staged.open("begin", "finish")
        assert first.result(timeout=20)[1] == Result() and second.result(timeout=20)[1] is None
    assert turns.draw(lambda: Work(3, [3], alone=True))[1] is None  # pyright: ignore[reportArgumentType]
    assert [batch for stage, batch in staged.seen if stage == "begin"] == [1]


def test_an_error_in_the_networks_lets_the_next_batch_at_them():
    class Broken(Staged):
        def begin(self, prepared: Any, shape: str, waiting: int, launched: Any = None) -> Any:
            if shape == "broken":
                raise RuntimeError("it broke")
            return prepared

    broken = Broken()
    broken.open("prepare", "finish")
    turns = Turns(broken)
    for alone in (False, True):
        with pytest.raises(RuntimeError, match="it broke"):
            turns.draw(lambda alone=alone: Work(1, [1], "broken", alone=alone))  # pyright: ignore[reportArgumentType]
    assert turns.draw(lambda: Work(2, [2]))[1] == Result()  # pyright: ignore[reportArgumentType]
