"""Rendering on a Ray cluster: an actor a GPU, or a processor. They come and go; what one loses another draws again."""

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from genpipe.workers.devices import cpu_workers, parse_devices
from genpipe.workers.engines import DEATHS, Event
from genpipe.workers.messages import Job, Model, Result, Work
from genpipe.workers.turns import Turns

# Seconds between looks at what the cluster has.
LOOK = 10.0
# Calls that an actor answers at a time: those that draw, and `drain`.
CALLS = 8


class Worker:
    """What an actor runs; its methods are called by several threads."""

    def __init__(self, job: dict[str, Any], device: str | None) -> None:
        self._job, self._device = Job.from_dict(job), device

    def open(self) -> dict[str, Any]:
        """Load the model."""
        from genpipe.workers.renderer import Renderer

        renderer = Renderer(self._job, self._device)
        self._turns = Turns(renderer)
        return asdict(renderer.model())

    def draw(self, work: dict[str, Any]) -> dict[str, Any] | None:
        """A batch's result; None where `drain` came before the networks."""
        _, result = self._turns.draw(lambda: Work.from_dict(work))
        return None if result is None else vars(result)

    def drain(self) -> None:
        """Begin nothing more."""
        self._turns.drain()


@dataclass
class _Actor:
    handle: Any
    ready: bool = False
    keys: set[int] = field(default_factory=set)


class RayEngine:
    """Actors of a Ray cluster.

    Args:
        address: of the cluster; None takes the one that RAY_ADDRESS names, or starts one on this machine.
        devices: "auto" (every GPU of the cluster, or else processors), "cpu:4" (that many actors), or "cuda:0,…", as many
            GPUs as it names.

    Raises:
        ValueError: Ray is not installed, or the devices are none.
    """

    def __init__(self, address: str | None = None, devices: str = "auto") -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError("the ray engine needs Ray: pip install 'genpipe[ray]'") from None
        self.workers = self.lost = 0
        self._ray: Any = ray
        self._address = address
        self._devices = parse_devices(devices)
        self._actors: list[_Actor] = []
        self._waiting: dict[Any, tuple[_Actor, int | None]] = {}
        self._events: list[Event] = []
        self._job = Job("")
        self._deaths, self._looked, self._started, self._depth = 0, 0.0, False, 1

    def open(self, job: Job) -> Model:
        self._job = job
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody unasked
            self._ray.init(address=self._address, include_dashboard=False, log_to_driver=False)
            self._started = True
        self._grow()
        while True:
            for reference in self._ready(1.0):
                actor, _ = self._waiting.pop(reference)
                model = self._opened(actor, reference)
                if model is not None:
                    return model

    def room(self) -> bool:
        return any(actor.ready and len(actor.keys) < self._depth for actor in self._actors)

    def submit(self, work: Work) -> None:
        actor = min((actor for actor in self._actors if actor.ready), key=lambda actor: len(actor.keys))
        actor.keys.add(work.key)
        reference = actor.handle.draw.remote(work.to_dict())
        self._waiting[reference] = (actor, work.key)

    def event(self, timeout: float) -> Event | None:
        if time.monotonic() - self._looked > LOOK:
            self._grow()
        if not self._events:
            for reference in self._ready(timeout):
                actor, key = self._waiting.pop(reference)
                if key is None:
                    self._opened(actor, reference)
                else:
                    self._finished(actor, key, reference)
        return self._events.pop(0) if self._events else None

    def drain(self) -> None:
        for actor in self._actors:
            actor.handle.drain.remote()

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()
        self._waiting.clear()
        if self._started:
            self._ray.shutdown()
            self._started = False

    def kill_one(self) -> None:
        """Kill a worker, to see that nothing is lost by it."""
        self._ray.kill(self._actors[0].handle)

    def _grow(self) -> None:
        """Have as many actors as the cluster has devices for; those too many wait for a machine to come."""
        self._looked = time.monotonic()
        resources = self._ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if self._devices:
            wanted, on_gpu = len(self._devices), self._devices[0] != "cpu"
            if self._devices == ["cuda"]:
                wanted = max(1, gpus)
        else:
            wanted, on_gpu = gpus, gpus > 0
            if not gpus:
                nodes = sum(node["Alive"] for node in self._ray.nodes())
                wanted = max(1, min(int(resources.get("CPU", 1)), nodes * cpu_workers(self._job.spec.model)))
        needs = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
        # Ray shows an actor its own GPU alone.
        device = "cuda" if on_gpu else "cpu"
        for _ in range(wanted - len(self._actors)):
            remote = self._ray.remote(max_concurrency=CALLS, **needs)(Worker)
            actor = _Actor(remote.remote(asdict(self._job), device))
            self._actors.append(actor)
            self._waiting[actor.handle.open.remote()] = (actor, None)
        self.workers = len(self._actors)

    def _ready(self, timeout: float) -> list[Any]:
        if not self._waiting:
            time.sleep(timeout)
            return []
        return self._ray.wait(list(self._waiting), timeout=timeout)[0]

    def _opened(self, actor: _Actor, reference: Any) -> Model | None:
        opened = self._get(actor, reference)
        if opened is None:
            return None
        actor.ready, self._deaths = True, 0
        model = Model.from_dict(opened)
        self._depth = model.depth
        return model

    def _finished(self, actor: _Actor, key: int, reference: Any) -> None:
        if key not in actor.keys:
            return
        try:
            result = self._get(actor, reference)
        except self._ray.exceptions.RayTaskError as error:
            raise RuntimeError(" ".join(str(error).splitlines()[-1:])) from error
        if key in actor.keys:  # it is alive
            actor.keys.discard(key)
            self._events.append(Event(key, None if result is None else Result(**result)))

    def _get(self, actor: _Actor, reference: Any) -> Any:
        """What an actor answered; None of one that died, which another takes the place of."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError | RuntimeError):
                raise error.cause from error
            raise
        except self._ray.exceptions.RayError as error:
            self._bury(actor, " ".join(str(error).split())[:200])
            return None

    def _bury(self, actor: _Actor, how: str) -> None:
        if actor not in self._actors:
            return
        self._actors.remove(actor)
        self.lost += 1
        # Which of them it was, only one that is alone tells.
        self._events += [Event(key, lost=f"its worker died ({how})") for key in sorted(actor.keys)]
        actor.keys.clear()
        if not actor.ready:
            self._deaths += 1
            if self._deaths >= DEATHS:
                raise RuntimeError(f"workers die while they load the model ({how})")
        self._grow()
