"""What the server counts, for Prometheus."""

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """The counters of one engine."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.waiting = Gauge("genpipe_waiting_images", "Images that wait for a worker", registry=r)
        self.running = Gauge("genpipe_running_images", "Images that workers draw", registry=r)
        self.waited = Histogram(
            "genpipe_wait_seconds", "From a request to its first step", buckets=_SECONDS, registry=r
        )
        self.took = Histogram("genpipe_image_seconds", "From a request to its image", buckets=_SECONDS, registry=r)
        self.steps = Counter("genpipe_steps", "Solver steps that were taken", registry=r)
        self.fill = Histogram(
            "genpipe_evaluation_images",
            "Images of one evaluation of a network",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=r,
        )
        self.drawn = Counter("genpipe_images", "Images that were drawn", registry=r)
        self.failed = Counter("genpipe_failures", "Images that were not drawn, by why", ["kind"], registry=r)
        self.full = Counter("genpipe_refused_full", "Requests that found no room in the queue", registry=r)
        self.deaths = Counter("genpipe_worker_deaths", "Workers that died and were started again", registry=r)
        self.memory = Gauge("genpipe_memory_bytes", "Memory of a process", ["process"], registry=r)
        self.memory.labels("server").set_function(lambda: resident(os.getpid()))

    def watch(self, name: str, pid: Callable[[], int | None]) -> None:
        """Tell the memory of the process that has this name."""
        self.memory.labels(name).set_function(lambda: resident(pid()))

    def text(self) -> bytes:
        """Give all of them as Prometheus reads them."""
        return generate_latest(self.registry)


def resident(pid: int | None) -> int:
    """Tell how many bytes of memory a process holds; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
