"""Measure `genpipe serve` with the embedded model: whether every image is right, how long one waits, what HTTP costs.

    python -m scripts.benchmark.serve correct --requests 1000 --clients 64 --kills 5
    python -m scripts.benchmark.serve poisson --images 100 --load 0.8
    python -m scripts.benchmark.serve throughput
    python -m scripts.benchmark.serve latency
    python -m scripts.benchmark.serve start
    python -m scripts.benchmark.serve memory --requests 10000
    python -m scripts.benchmark.serve hostile --requests 5000

`correct`: requests of mixed sizes, steps, samplers and seeds from many clients, of which some stop listening, while workers are
killed; afterwards every image is drawn again by the pipeline, in fp32. `poisson`: the same arrivals at a server that batches by
the step, at one that draws one by one, and at diffusers behind a plain endpoint with a lock. The load is a share of what the
one-by-one server draws per second while requests always wait. A wait lasts from asking until the client hears that the first
step is done; diffusers tells no steps, there it is that to the lock, and since more come than it can draw, its waits grow with
every request.
`throughput`: against `Pipeline` at the same batch. `latency`: of one request, over the bare pipeline with its PNG.
`start`: from the command to /readyz, over `import torch`. `memory`: of the worker, over many requests. `hostile`: requests that
should break something (`scripts.benchmark.hostile`). The last line is one JSON object.
"""

import argparse
import io
import json
import os
import platform
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import requests
from PIL import Image

from genpipe import Pipeline
from genpipe.images import encode_image
from scripts.benchmark.arrivals import poisson
from scripts.benchmark.hostile import hostile
from scripts.benchmark.serving import PROMPTS, Outcome, bodies, draw, rate_of, served
from scripts.benchmark.step import processor


def correct(count: int, clients: int, kills: int, leaving: float = 0.1) -> dict[str, Any]:
    """Draw requests while clients leave and workers die; tell what was lost, and what is not the pipeline's image."""
    rng = random.Random(1)
    wanted = bodies(count, 1)
    for body in wanted:
        body |= {"width": rng.choice((96, 128, 160)), "height": rng.choice((96, 128)), "steps": rng.randint(2, 8)}
        if sampler := rng.choice((None, "euler_a", "dpmpp_2m", "ddim")):
            body["sampler"] = sampler
    leaves = {index for index in range(count) if rng.random() < leaving}
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(count):
        todo.put(index)
    found: dict[int, Outcome] = {}

    def work(client: int) -> None:
        while True:
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            found[index] = draw(server.url, wanted[index], f"client {client}", leaves=index in leaves)

    with served("--dtype", "fp32") as server:
        started, killed = time.perf_counter(), 0
        threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if killed < kills and len(found) >= (killed + 1) * count // (kills + 1):
                killed += server.kill_worker()
            time.sleep(0.05)
        seconds = time.perf_counter() - started
    drawn = {index: found[index] for index in found if index not in leaves}
    lost = [outcome.error for outcome in drawn.values() if outcome.data is None]
    pipeline = Pipeline.from_pretrained(dtype="fp32")
    mixed = 0
    for index, outcome in drawn.items():
        if outcome.data is not None:
            body = {name: value for name, value in wanted[index].items() if name != "previews"}
            expected = pipeline(body.pop("prompt"), progress=False, **body)
            with Image.open(io.BytesIO(outcome.data)) as image:
                difference = np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).max()
            mixed += int(difference) > 2
    took = sorted(outcome.took for outcome in drawn.values() if outcome.data is not None)
    return {
        "requests": count,
        "left": len(leaves),
        "kills": killed,
        "lost": len(lost),
        "reasons": sorted(set(filter(None, lost)))[:5],
        "not_the_pipelines": mixed,
        "p50_s": took[len(took) // 2],
        "p99_s": took[int(len(took) * 0.99)],
        "images_per_s": len(drawn) / seconds,
    }


def throughput(images: int, batch: int, runs: int) -> dict[str, Any]:
    """Images per second of the server and of `Pipeline`, in turns."""
    pipeline = Pipeline.from_pretrained()
    rates: dict[str, list[float]] = {"server": [], "pipeline": []}
    with served("--batch", str(batch), "--max-images", str(images)) as server:

        def ask() -> None:
            answer = requests.post(
                f"{server.url}/v1/images/generations", json={"prompt": PROMPTS[0], "n": images}, timeout=3600
            )
            answer.raise_for_status()

        def here() -> None:
            for image in pipeline(PROMPTS[0], n=images, seed=1, progress=False):
                encode_image(image, ".png")

        for run in range(runs + 1):
            for name, work in (("server", ask), ("pipeline", here)):
                rate = rate_of(work, images)
                if run:  # the first warms up
                    rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"images": images, "batch": batch, "images_per_s": medians, "ratio": medians["server"] / medians["pipeline"]}


def latency(runs: int) -> dict[str, Any]:
    """Seconds of one request over those of the bare pipeline, in turns."""
    pipeline = Pipeline.from_pretrained()
    times: dict[str, list[float]] = {"server": [], "pipeline": []}
    with served() as server, requests.Session() as session:
        for run in range(runs + 2):
            started = time.perf_counter()
            session.post(
                f"{server.url}/v1/images/generations", json={"prompt": PROMPTS[0], "seed": run}, timeout=600
            ).raise_for_status()
            middle = time.perf_counter()
            encode_image(pipeline(PROMPTS[0], seed=run, progress=False), ".png")
            if run > 1:
                times["server"].append(middle - started)
                times["pipeline"].append(time.perf_counter() - middle)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"seconds": medians, "over_ms": 1000 * (medians["server"] - medians["pipeline"])}


def start(runs: int) -> dict[str, Any]:
    """Seconds from the command to /readyz, and of `import torch`, in turns."""
    times: dict[str, list[float]] = {"serve": [], "import torch": []}
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        times["import torch"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with served():
            times["serve"].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"seconds": medians, "over_import_torch_s": medians["serve"] - medians["import torch"]}


def memory(count: int, clients: int) -> dict[str, Any]:
    """How much the memory of the server and of its worker grew over the second half of many requests of one step."""

    def work(todo: Iterator[dict[str, Any]]) -> None:
        with requests.Session() as session:
            for body in todo:
                answer = session.post(f"{server.url}/v1/images/generations", json=body, timeout=600)
                answer.raise_for_status()

    with served() as server:
        sizes = []
        for half in range(2):
            wanted = bodies(count // 2, half, steps=1, width=64, height=64)
            for body in wanted:
                del body["previews"]
            threads = [threading.Thread(target=work, args=(iter(wanted[k::clients]),)) for k in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found = server.metrics()
            sizes.append({name: found[f'genpipe_memory_bytes{{process="{name}"}}'] for name in ("server", "worker-0")})
    if (images := found["genpipe_images_total"]) != 2 * (count // 2):
        raise RuntimeError(f"{images:.0f} of {count} images were drawn")
    growth = {name: sizes[1][name] / sizes[0][name] - 1 for name in sizes[0]}
    return {"requests": count, "bytes": sizes[1], "growth_of_second_half": growth}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one part, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)

    def part(name: str, **numbers: float) -> None:
        chosen = parts.add_parser(name)
        for option, default in numbers.items():
            chosen.add_argument(f"--{option}", type=type(default), default=default)

    part("correct", requests=1000, clients=64, kills=5)
    part("poisson", images=100, load=0.8, diffusers=30)
    part("throughput", images=32, batch=8, runs=3)
    part("latency", runs=20)
    part("start", runs=5)
    part("memory", requests=10_000, clients=8)
    part("hostile", requests=5000)
    given = vars(parser.parse_args(argv))
    run: dict[str, Callable[..., dict[str, Any]]] = {
        "correct": lambda requests, clients, kills: correct(requests, clients, kills),
        "poisson": poisson,
        "throughput": throughput,
        "latency": latency,
        "start": start,
        "memory": lambda requests, clients: memory(requests, clients),
        "hostile": lambda requests: hostile(requests),
    }
    name = given.pop("part")
    machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({name: run[name](**given), **machine}))


if __name__ == "__main__":
    main()
