"""Batches side by side: the networks are one batch's at a time, and preparing and writing go on beside them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from genpipe.workers.messages import Result
from genpipe.workers.turns import Batch, Turns


class Staged:
    """A renderer whose stages wait to be let go, and tell what goes on at the same time."""

    def __init__(self) -> None:
        self.within = {"prepare": 0, "begin": 0, "finish": 0}
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
        self.stage("prepare", tasks)
        return tasks

    def begin(self, prepared: Any, shape: str, waiting: int) -> Any:
        self.stage("begin", prepared)
        return prepared

    def finish(self, begun: Any) -> Result:
        self.stage("finish", begun)
        return Result()

    def open(self, *stages: str, times: int = 100) -> None:
        for stage in stages:
            self.gates[stage].release(times)

    def wait_for(self, *events: tuple[str, Any]) -> None:
        done = threading.Event()
        for _ in range(2000):
            if set(events) <= set(self.seen):
                return
            done.wait(0.005)
        raise AssertionError(f"{events} are not all among {self.seen}")


@pytest.fixture
def staged():
    made = Staged()
    yield made
    made.open("prepare", "begin", "finish")


def test_one_is_prepared_and_others_written_beside_that_in_the_networks(staged):
    turns, batches = Turns(staged), iter(range(6))
    lock = threading.Lock()

    def take() -> Batch:
        with lock:
            number = next(batches)
        return Batch(number, f"tasks {number}", "", 0)  # pyright: ignore[reportArgumentType]

    staged.open("prepare")
    with ThreadPoolExecutor(4) as threads:
        drawn = [threads.submit(turns.draw, take) for _ in range(6)]
        staged.wait_for(("begin", "tasks 0"), ("prepare", "tasks 1"))
        assert ("prepare", "tasks 2") not in staged.seen  # one ahead, not all
        staged.open("begin", times=2)
        staged.wait_for(("finish", "tasks 0"), ("finish", "tasks 1"), ("begin", "tasks 2"), ("prepare", "tasks 3"))
        staged.open("begin", "finish")
        results = [future.result(timeout=20) for future in drawn]
    assert sorted(batch.key for batch, _ in results) == list(range(6)) and None not in [one for _, one in results]
    assert staged.most["begin"] == staged.most["prepare"] == 1 and staged.most["finish"] >= 2
    assert [batch for stage, batch in staged.seen if stage == "begin"] == [f"tasks {k}" for k in range(6)]


def test_what_is_prepared_when_it_is_drained_is_given_back(staged):
    turns = Turns(staged)
    staged.open("prepare")

    def drawn(number: int) -> Any:
        return turns.draw(lambda: Batch(number, (), "", 0), begun=lambda batch: told.append(batch.key))

    told: list[int] = []
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(drawn, 1)
        staged.wait_for(("begin", ()))
        second = threads.submit(drawn, 2)
        turns.drain()
        staged.open("begin", "finish")
        assert first.result(timeout=20)[1] is not None and second.result(timeout=20)[1] is None
    assert told == [1]


def test_an_error_in_the_networks_lets_the_next_batch_at_them(staged):
    class Broken(Staged):
        def begin(self, prepared: Any, shape: str, waiting: int) -> Any:
            if shape == "broken":
                raise RuntimeError("it broke")
            return prepared

    broken = Broken()
    broken.open("prepare", "finish")
    turns = Turns(broken)
    with pytest.raises(RuntimeError, match="it broke"):
        turns.draw(lambda: Batch(1, [], "broken", 0))
    assert turns.draw(lambda: Batch(2, [], "", 0))[1] == Result()
