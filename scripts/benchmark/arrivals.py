"""Requests that come when they come, at servers that batch and that do not: who waits how long."""

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.benchmark.locked import locked_diffusers
from scripts.benchmark.serving import Outcome, bodies, draw, rate_of, served


def poisson(images: int, load: float, diffusers: int) -> dict[str, Any]:
    """Waits at a server that batches, at one that does not, and at diffusers behind a lock, for the same arrivals.

    Args:
        diffusers: how many of the arrivals, from the first on, diffusers gets; 0 leaves it out.
    """
    rows: dict[str, dict[str, float]] = {}

    def show(name: str, outcomes: list[Outcome]) -> None:
        rows[name] = {}
        for field in ("wait", "took"):
            values = sorted(getattr(one, field) for one in outcomes)
            rows[name] |= {f"{field}_s": statistics.median(values), f"{field}_p99_s": values[int(0.99 * len(values))]}
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in rows[name].values())} |", flush=True)

    with served("--batch", "1") as server:
        capacity = _capacity(server.url)
        # Scaled to end when they should: a Poisson process of so many arrivals, without the luck of the load.
        rng = random.Random(3)
        gaps = [rng.expovariate(1) for _ in range(images)]
        gaps = [gap / sum(gaps) * images / (load * capacity) for gap in gaps]
        print(f"{images} images at {load:.0%} of {capacity:.3g} images/s\n")
        print("| | median wait, s | p99 | median of the whole, s | p99 |\n|---|---|---|---|---|", flush=True)
        show("one by one", _arrive(server.url, gaps))
    with served() as server:
        _capacity(server.url)  # which warms up batches
        show("step by step", _arrive(server.url, gaps))
    if diffusers:
        with locked_diffusers() as url:
            show(f"diffusers, the first {diffusers}", _arrive(url, gaps[:diffusers]))
    ratio = rows["step by step"]["wait_s"] / rows["one by one"]["wait_s"]
    return {"capacity": capacity, "load": load, "rows": rows, "wait_ratio": ratio}


def _capacity(url: str, images: int = 24, clients: int = 4) -> float:
    """Images per second where some always wait."""
    with ThreadPoolExecutor(clients) as pool:

        def work(count: int) -> None:
            _check([one.result() for one in [pool.submit(draw, *call) for call in _calls(url, count, 2)]])

        work(clients)  # which warms up
        return rate_of(lambda: work(images), images)


def _calls(url: str, count: int, seed: int) -> list[tuple[str, dict[str, Any], str]]:
    """What `draw` is called with for different clients."""
    return [(url, body, f"client {index}") for index, body in enumerate(bodies(count, seed))]


def _check(outcomes: list[Outcome]) -> list[Outcome]:
    if errors := [one.error for one in outcomes if one.data is None]:
        raise RuntimeError(f"{len(errors)} were not drawn: {errors[0]}")
    return outcomes


def _arrive(url: str, gaps: Sequence[float]) -> list[Outcome]:
    """Ask for images, each so many seconds after the last, whatever became of that."""
    draw(url, bodies(1, 5)[0], "warm up")
    with ThreadPoolExecutor(len(gaps)) as pool:
        due, asked = time.perf_counter(), []
        for gap, call in zip(gaps, _calls(url, len(gaps), 4), strict=True):
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()))
            asked.append(pool.submit(draw, *call))
        return _check([one.result() for one in asked])
