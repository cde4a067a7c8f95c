"""The jobs that wait are taken in an order that is fair between clients."""

import random
from typing import Any

import pytest

from genpipe.request import Request
from genpipe.server.jobs import Job
from genpipe.server.queue import LOW_SHARE, FairQueue, QueueFull

REQUEST = Request("a", seed=1, steps=2, guidance_scale=3.0, height=8, width=8)


def job(identifier: str, client: str = "", **values: Any) -> Job:
    return Job(identifier, REQUEST, "model", client, **values)


def taken(queue: FairQueue, count: int = 1000) -> str:
    return " ".join(queue.take().id for _ in range(min(count, len(queue))))


def test_clients_take_turns_so_that_nobody_waits_behind_anothers_hundred() -> None:
    queue = FairQueue(1000)
    queue.put([job(f"a{k}", "a") for k in range(100)])
    assert taken(queue, 2) == "a0 a1"
    queue.put([job(f"b{k}", "b") for k in range(2)])
    queue.put([job("c0", "c")])
    assert taken(queue, 6) == "a2 b0 c0 a3 b1 a4"
    assert taken(queue) == " ".join(f"a{k}" for k in range(5, 100))


def test_low_jobs_give_way_and_do_not_starve() -> None:
    queue = FairQueue(1000)
    queue.put([job(f"l{k}", "low", low=True) for k in range(3)])
    queue.put([job(f"u{k}", "usual") for k in range(2 * LOW_SHARE)])
    order = taken(queue).split()
    assert [index for index, name in enumerate(order) if name.startswith("l")] == [
        LOW_SHARE - 1,
        2 * LOW_SHARE - 1,
        2 * LOW_SHARE + 2,
    ]


def test_what_is_put_back_comes_first_in_its_order() -> None:
    queue = FairQueue(2)
    queue.put([job("a", "x"), job("b", "x")])
    queue.put_back(job("c", "y"))
    queue.put_back(job("d", "y"))
    assert len(queue) == 4 and taken(queue) == "c d a b"


def test_it_holds_no_more_than_it_may_and_takes_all_jobs_or_none() -> None:
    queue = FairQueue(3)
    queue.put([job("a"), job("b")])
    with pytest.raises(QueueFull, match="2 of 3 places are taken and 2 are asked for"):
        queue.put([job("c"), job("d")])
    assert taken(queue) == "a b"


def test_nothing_is_lost_or_doubled_whatever_is_done() -> None:
    rng = random.Random(0)
    queue, known, number = FairQueue(50), {}, 0
    for _ in range(3000):
        action = rng.random()
        if action < 0.5 and len(known) < 50:
            one = job(str(number), rng.choice("abcd"), low=rng.random() < 0.3)
            queue.put([one])
            known[one.id], number = one, number + 1
        elif action < 0.8 and known:
            first = queue.first()
            one = queue.take()
            assert one is first and known.pop(one.id) is one
            if rng.random() < 0.2:
                queue.put_back(one)
                known[one.id] = one
        elif known:
            gone = rng.choice(list(known))
            assert queue.remove(gone) is known.pop(gone) and queue.remove(gone) is None
        assert len(queue) == len(known) == len({one.id for one in queue})
    while known:
        known.pop(queue.take().id)
    assert queue.first() is None
    with pytest.raises(LookupError, match="no job waits"):
        queue.take()
