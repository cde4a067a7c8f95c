"""Where batches are drawn: the interface that engines share, and the one of this machine's processes."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from genpipe.embedded import EMBEDDED
from genpipe.processors import processors
from genpipe.workers.messages import Job, Model, Result, Task

# Workers that die one after the other before any of them is ready.
DEATHS = 3


@dataclass(frozen=True)
class Event:
    """What became of a batch: its result, or None where it was not drawn; `lost` names the accident where there was one."""

    key: int
    result: Result | None = None
    lost: str | None = None


class Engine(Protocol):
    """Draws batches somewhere. Batches are known by keys that the caller chooses."""

    workers: int

    def open(self, job: Job) -> Model:
        """Load the model; raises ValueError or OSError where that cannot be."""
        ...

    def room(self) -> bool:
        """Whether a worker would take one more batch."""
        ...

    def submit(self, key: int, tasks: Sequence[Task], shape: str, waiting: int) -> None:
        """Have a worker draw a batch; `waiting` is as in `workers.turns.Batch`."""
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
    begun: int | None = None  # the last batch that its networks took up


class LocalEngine:
    """Processes of this machine: one a GPU, or several on the CPU.

    Args:
        devices: "auto", "cpu", "cpu:4" (that many processes), "cuda", or "cuda:0,cuda:2".
        command: of a worker's process.
    """

    def __init__(self, devices: str = "auto", command: Sequence[str] | None = None) -> None:
        self.workers = 0
        self._devices = parse_devices(devices)
        self._command = [sys.executable, "-m", "genpipe.workers.process"] if command is None else list(command)
        self._workers: list[_Worker] = []
        self._messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._events: list[Event] = []
        self._job = Job("")
        self._deaths = 0
        self._threads = 1
        self._depth = 1

    def open(self, job: Job) -> Model:
        self._job = job
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
        model = Model(**message["opened"])
        self._depth = model.depth
        return model

    def room(self) -> bool:
        return any(worker.ready and len(worker.keys) < self._depth for worker in self._workers)

    def submit(self, key: int, tasks: Sequence[Task], shape: str, waiting: int) -> None:
        worker = min((worker for worker in self._workers if worker.ready), key=lambda worker: len(worker.keys))
        worker.keys.add(key)
        self._send(worker, draw=key, tasks=[asdict(task) for task in tasks], shape=shape, waiting=waiting)

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

    def _start(self, device: str | None) -> None:
        environment = {**os.environ}
        environment.setdefault("OMP_NUM_THREADS", str(self._threads))
        # The code that runs here, wherever the process was started from.
        root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        worker = _Worker(device, process)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        self._send(worker, job=asdict(self._job), device=device)

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
            worker.ready, self._deaths = True, 0
        elif "refused" in message:
            raise ValueError(message["refused"]) if message["usage"] else RuntimeError(message["refused"])
        elif "stop" in message:
            raise OSError(message["stop"])
        elif "begun" in message:
            worker.begun = message["begun"]
        elif "done" in message:
            worker.keys.discard(message["done"])
            self._events.append(Event(message["done"], Result(**message["result"])))
        else:
            worker.keys.discard(message["returned"])
            self._events.append(Event(message["returned"]))

    def _bury(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        code = worker.process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        self._workers.remove(worker)
        lost = f"its worker died ({how})"
        self._events += [Event(key, lost=lost if key == worker.begun else None) for key in sorted(worker.keys)]
        if not worker.ready:
            self._deaths += 1
            if self._deaths >= DEATHS:
                raise RuntimeError(f"workers die while they load the model ({how}): is there memory enough for it?")
        self._start(worker.device)


def parse_devices(text: str) -> list[str]:
    """The workers' devices; [] for "auto", ["cuda"] for every card.

    Raises:
        ValueError: the text names none.
    """
    if text == "auto":
        return []
    devices: list[str] = []
    for part in text.split(","):
        kind, colon, number = part.strip().partition(":")
        if kind not in ("cpu", "cuda", "mps") or (colon and not number.isdecimal()):
            raise ValueError(f"devices {text!r} are not devices: use auto, cpu, cpu:4, cuda or cuda:0,cuda:1")
        if kind == "cpu":
            devices += ["cpu"] * (int(number) if colon else 1)
        else:
            devices.append(part.strip())
    if not devices or len(devices) > 256:
        raise ValueError(f"devices {text!r} are {len(devices)} workers: give 1 to 256")
    return devices


def cpu_workers(model: str | None) -> int:
    """Processes that a CPU takes: one a processor, as far as three copies of the weights fit each into free memory.

    A model on the hub gets one: its files are not known here, and they are large.
    """
    folder = EMBEDDED if model is None else Path(model)
    size = sum(path.stat().st_size for path in folder.glob("*/*.safetensors")) if folder.is_dir() else 0
    if not size:
        return 1
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 1
    return max(1, min(processors(), free // (3 * size + (1 << 29))))
