"""Where batches are drawn: the interface that engines share, and the one of this machine's processes."""

import json
import os
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from genpipe.processors import processors
from genpipe.workers.devices import cpu_workers, environment_for, parse_devices, visible_slices
from genpipe.workers.messages import Job, Model, Result, Work

# Workers of a device that die one after the other, before they are ready or with a batch: then it is left out.
DEATHS = 3


@dataclass(frozen=True)
class Event:
    """What became of a batch.

    Attributes:
        result: None where it was not drawn.
        lost: the accident where there was one, which this batch or another that was begun has caused.
    """

    key: int
    result: Result | None = None
    lost: str | None = None


class Engine(Protocol):
    """Draws batches somewhere. Batches are known by keys that the caller chooses.

    Attributes:
        workers: how many there are.
        lost: how many have died.
    """

    workers: int
    lost: int

    def open(self, job: Job) -> Model:
        """Load the model; raises ValueError or OSError where that cannot be."""
        ...

    def room(self) -> bool:
        """Whether a worker would take one more batch."""
        ...

    def submit(self, work: Work) -> None:
        """Have a worker draw a batch."""
        ...

    def event(self, timeout: float) -> Event | None:
        """The next news, or None after `timeout` seconds; raises OSError when a worker cannot write."""
        ...

    def drain(self) -> None:
        """Give back, by events, the batches that no network has begun."""
        ...

    def close(self) -> None:
        """End every worker, at once."""
        ...


@dataclass
class _Worker:
    device: str | None
    process: subprocess.Popen[bytes]
    ready: bool = False
    keys: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)  # those of them that it has taken up
    why: str | None = None  # it could not load the model
    deaths: int = 0  # of the workers of its device, since one of them finished a batch


class LocalEngine:
    """Processes of this machine: one per GPU, or several on the CPU.

    Args:
        devices: "auto", "cpu", "cpu:4" (that many processes), "cuda", "cuda:0,cuda:2", or names that `nvidia-smi -L` shows.
        command: of a worker's process.
    """

    def __init__(self, devices: str = "auto", command: Sequence[str] | None = None) -> None:
        self.workers = self.lost = 0
        self._devices = parse_devices(devices)
        self._command = [sys.executable, "-m", "genpipe.workers.process"] if command is None else list(command)
        self._workers: list[_Worker] = []
        self._messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._events: list[Event] = []
        self._job = Job("")
        self._threads = self._depth = 1
        self._unready = 0  # workers that died one after the other before they were ready

    def open(self, job: Job) -> Model:
        self._job = job
        if not self._devices or self._devices == ["cuda"]:
            self._devices = visible_slices(os.environ) or self._devices
        on_cpu = self._devices if self._devices and self._devices[0] == "cpu" else ["cpu"] * cpu_workers(job.spec.model)
        self._threads = max(1, processors() // len(on_cpu))
        self._start(self._devices[0] if self._devices else None)
        while True:
            worker, message = self._messages.get()
            if message is not None and "opened" in message:
                break
            self._handle(worker, message)
        worker.ready = True
        devices = self._devices
        if not devices:
            found = message["device"]
            devices = [f"cuda:{k}" for k in range(message["cards"])] if found.startswith("cuda") else on_cpu
            if found.startswith("mps"):
                devices = [found]
        elif devices == ["cuda"]:
            devices = [f"cuda:{k}" for k in range(message["cards"])]
        worker.device = devices[0]
        for device in devices[1:]:
            self._start(device)
        self.workers = len(devices)
        model = Model.from_dict(message["opened"])
        self._depth = model.depth
        return model

    def room(self) -> bool:
        return any(worker.ready and len(worker.keys) < self._depth for worker in self._workers)

    def submit(self, work: Work) -> None:
        worker = min((worker for worker in self._workers if worker.ready), key=lambda worker: len(worker.keys))
        worker.keys.add(work.key)
        self._send(worker, draw=work.to_dict())

    def event(self, timeout: float) -> Event | None:
        while not self._events:
            try:
                worker, message = self._messages.get(timeout=timeout)
            except queue.Empty:
                return None
            self._handle(worker, message)
            if message is not None and "opened" in message:
                return None  # there is room now
        return self._events.pop(0)

    def drain(self) -> None:
        for worker in self._workers:
            self._send(worker, drain=True)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._workers.clear()

    def _start(self, device: str | None, deaths: int = 0) -> None:
        own, name = environment_for(device)
        environment = {**os.environ, **own}
        environment.setdefault("OMP_NUM_THREADS", str(self._threads))
        # The code that runs here, wherever the process was started from.
        root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        worker = _Worker(device, process, deaths=deaths)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        self._send(worker, job=asdict(self._job), device=name)

    def _send(self, worker: _Worker, **message: Any) -> None:
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(message).encode() + b"\n")
            worker.process.stdin.flush()
        except OSError:
            pass  # it is dead, of which its listener will tell

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        try:
            for line in worker.process.stdout:
                self._messages.put((worker, json.loads(line)))
        except ValueError:
            pass  # it was killed while it wrote, or its pipe was closed
        self._messages.put((worker, None))

    def _handle(self, worker: _Worker, message: dict[str, Any] | None) -> None:
        if message is None:
            self._bury(worker)
        elif "opened" in message:
            worker.ready = True
        elif "refused" in message:
            self._refused(worker, message["refused"], message["usage"])
        elif "stop" in message:
            raise OSError(message["stop"])
        elif "begun" in message:
            worker.begun.add(message["begun"])
        elif "done" in message:
            worker.deaths = 0
            worker.keys.discard(message["done"])
            worker.begun.discard(message["done"])
            self._events.append(Event(message["done"], Result(**message["result"])))
        else:
            worker.keys.discard(message["returned"])
            worker.begun.discard(message["returned"])
            self._events.append(Event(message["returned"]))

    def _refused(self, worker: _Worker, why: str, usage: bool) -> None:
        """A worker cannot load the model: nobody can, or its device has failed and others have not."""
        if worker.device is not None and environment_for(worker.device)[0]:
            why = f"{worker.device}: {why}"
        if usage and not worker.deaths:
            raise ValueError(why)
        if not any(one.ready for one in self._workers):
            raise RuntimeError(why)
        worker.why = why

    def _bury(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        code = worker.process.wait()
        for pipe in filter(None, (worker.process.stdin, worker.process.stdout)):
            with suppress(OSError):
                pipe.close()
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        self._workers.remove(worker)
        self.lost += 1
        # Which of those that were begun it was, only one that is alone tells.
        lost = f"its worker died ({how})"
        self._events += [Event(key, lost=lost if key in worker.begun else None) for key in sorted(worker.keys)]
        deaths, others = worker.deaths + 1, any(one.ready for one in self._workers)
        self._unready = 0 if worker.ready else self._unready + 1
        if self._unready >= DEATHS and not others:
            raise RuntimeError(f"workers die while they load the model ({how}): is there memory enough for it?")
        if deaths >= DEATHS and others:
            why = f"its workers died {deaths} times in a row ({worker.why or how})"
            warnings.warn(f"{worker.device} is left out: {why}", stacklevel=2)
            return
        self._start(worker.device, deaths)
