"""The engine: hands the jobs that wait to workers, and tells those who asked what becomes of them."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from genpipe.server.jobs import USUAL, Drawn, Failed, Job, News, Stepped
from genpipe.server.metrics import Metrics
from genpipe.server.processes import Process, spawn
from genpipe.server.queue import FairQueue, QueueFull
from genpipe.server.worker import Cancel, Opened, Refused, Sized, Start, Told
from genpipe.server.workers import Worker
from genpipe.spec import ModelSpec
from genpipe.workers.devices import parse_devices
from genpipe.workers.messages import Model

if TYPE_CHECKING:
    from genpipe.models.tokenizer import Tokenizer

# Times that a job is begun before its worker's death is taken for its fault; from the second death on it is drawn alone.
ATTEMPTS = 4
# Workers that die one after the other before any of them is ready.
DEATHS = 3

Listener = Callable[[list[News]], None]


class Closing(Exception):
    """The engine takes no more jobs."""


@dataclass(eq=False)
class _Asked:
    job: Job
    listener: Listener
    since: float
    deaths: int = 0
    begun: bool = False


class Engine:
    """Draws jobs with the models that its workers hold, many at a time.

    Listeners are called by the engine's own thread, with what became of their jobs meanwhile, and have to return at once.

    Args:
        specs: the models, by name.
        devices: of the workers, see `genpipe.workers.devices.parse_devices`.
        most: images that a worker draws at a time; None has it measure how many go through its networks together.
        deterministic: images are bitwise the same whatever else is drawn; each is drawn alone.
        waiting: jobs that may wait.
        clock: tells the time in seconds, for deadlines.
        launch: starts a worker's process.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        *,
        devices: str = "auto",
        most: int | None = None,
        deterministic: bool = False,
        waiting: int = 256,
        clock: Callable[[], float] = time.monotonic,
        launch: Callable[[], Process] = spawn,
    ) -> None:
        self.metrics, self.models, self.concepts = Metrics(), dict[str, Model](), dict[str, tuple[str, ...]]()
        self.tokenizers: dict[str, tuple[Tokenizer, ...]] = {}
        self._devices = parse_devices(devices)
        self._start = Start(dict(specs), others=tuple(self._devices[1:]), most=most, deterministic=deterministic)
        self._most = 1 if deterministic else USUAL if most is None else most
        self._clock, self._launch = clock, launch
        self._queue = FairQueue(waiting)
        self._asked: dict[str, _Asked] = {}
        self._workers: list[Worker] = []
        self._lock = threading.Condition()
        self._told: dict[Listener, list[News]] = {}
        self._wake, self._woken = Pipe()
        self._finished: deque[float] = deque(maxlen=32)
        self._deaths = 0
        self._broken: Refused | None = None
        self._closing = self._closed = False
        self.metrics.waiting.set_function(lambda: len(self._queue))
        self.metrics.running.set_function(lambda: sum(len(worker.jobs) for worker in self._workers))
        self._thread = threading.Thread(target=self._run, name="genpipe-engine", daemon=True)

    def open(self) -> None:
        """Start the first worker; the others follow when it knows what devices there are. Returns at once."""
        self._add_worker(self._devices[0] if self._devices else None)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are drawn now."""
        return any(worker.ready for worker in self._workers) and not self._closing

    @property
    def idle(self) -> bool:
        """Whether there is no job."""
        return not self._asked

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until jobs are drawn; False where the time was too short.

        Raises:
            ValueError: the models cannot be loaded as they were asked for.
            RuntimeError: the workers cannot run.
        """
        with self._lock:
            self._lock.wait_for(lambda: self.ready or self._broken is not None or self._closed, timeout)
        if self._broken is not None:
            raise (ValueError if self._broken.usage else RuntimeError)(self._broken.reason)
        return self.ready

    def submit(self, jobs: list[Job], listener: Listener) -> None:
        """Have jobs drawn: all of them, or none.

        Raises:
            QueueFull: there is no room for them now; see `retry_after`.
            Closing: the engine ends, or cannot run.
        """
        with self._lock:
            if self._closing or self._broken is not None:
                raise Closing("the server is shutting down" if self._closing else "the server's workers cannot run")
            try:
                self._queue.put(jobs)
            except QueueFull:
                self.metrics.full.inc()
                raise
            now = self._clock()
            self._asked |= {job.id: _Asked(job, listener, now) for job in jobs}
        self._wake.send_bytes(b".")

    def cancel(self, identifier: str) -> bool:
        """Let go of a job within a step; False where it is done already, or was never asked for."""
        with self._lock:
            if identifier not in self._asked:
                return False
            self._give_up(identifier, "it was cancelled", "cancelled")
        self._wake.send_bytes(b".")
        return True

    def retry_after(self, count: int = 1) -> int:
        """Say in how many seconds there should be room for so many jobs, by how fast images were drawn lately."""
        finished = list(self._finished)
        if len(finished) < 2 or finished[-1] == finished[0]:
            return 5
        rate = (len(finished) - 1) / (finished[-1] - finished[0])
        return min(600, max(1, math.ceil(count / rate)))

    def close(self, drain: float = 0.0) -> bool:
        """Take no more jobs, wait up to `drain` seconds for those that were taken, and end the workers.

        Returns:
            Whether all jobs were finished.
        """
        with self._lock:
            self._closing = True
            self._lock.wait_for(lambda: self.idle or self._broken is not None, drain)
            drained = self.idle
            for identifier in list(self._asked):
                self._give_up(identifier, "the server was shut down", "failed")
            self._closed = True
            self._lock.notify_all()
        self._wake.send_bytes(b".")
        if self._thread.is_alive():
            self._thread.join()
        return drained

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                connections: list[Any] = [worker.process.connection for worker in self._workers]
                until = self._until_deadline()
            ready = wait([self._woken, *connections], until)
            with self._lock:
                if self._woken in ready:
                    while self._woken.poll():
                        self._woken.recv_bytes()
                for worker in [one for one in self._workers if one.process.connection in ready]:
                    self._hear(worker)
                self._expire()
                self._assign()
                told, self._told = self._told, {}
                self._lock.notify_all()
            _tell_all(told)
        _tell_all(self._told)
        for worker in self._workers:
            worker.process.kill()

    def _until_deadline(self) -> float | None:
        ends = [asked.job.deadline for asked in self._asked.values() if asked.job.deadline is not None]
        return max(0.0, min(ends) - self._clock()) if ends else None

    def _add_worker(self, device: str | None) -> None:
        names = {worker.name for worker in self._workers}
        name = next(each for k in range(len(names) + 1) if (each := f"worker-{k}") not in names)
        worker = Worker(name, device, self._launch(), self._most)
        self._workers.append(worker)
        self.metrics.watch(name, lambda: worker.process.pid)
        worker.send(replace(self._start, device=device))

    def _hear(self, worker: Worker) -> None:
        try:
            message = worker.process.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if isinstance(message, Told):
            for images in message.images:
                self.metrics.fill.observe(images)
            for identifier in message.gone:
                worker.let_go(identifier)
            for news in message.news:
                self._tell(worker, news)
        elif isinstance(message, Opened):
            self._opened(worker, message)
        elif isinstance(message, Sized):
            worker.most = message.most
        elif isinstance(message, Refused):
            self._break(message)

    def _opened(self, worker: Worker, opened: Opened) -> None:
        worker.ready, self._deaths = True, 0
        if self.models:
            return
        self.models, self.concepts = dict(opened.models), dict(opened.concepts)
        self.tokenizers = dict(opened.tokenizers)
        self._start = replace(self._start, others=())
        others = self._devices[1:]
        if opened.device.startswith("cuda") and self._devices in ([], ["cuda"]):
            worker.device, *others = [f"cuda:{k}" for k in range(max(1, opened.cards))]
        for device in others:
            self._add_worker(device)

    def _tell(self, worker: Worker, news: News) -> None:
        asked = self._asked.get(news.id)
        if isinstance(news, Stepped):
            self.metrics.steps.inc()
            if asked is not None and not asked.begun:
                asked.begun = True
                self.metrics.waited.observe(self._clock() - asked.since)
            worker.steps(news)
        else:
            worker.let_go(news.id)
        if asked is None:  # cancelled
            return
        self._told.setdefault(asked.listener, []).append(news)
        if isinstance(news, Stepped):
            return
        del self._asked[news.id]
        if isinstance(news, Drawn):
            now = self._clock()
            self._finished.append(now)
            self.metrics.drawn.inc()
            self.metrics.took.observe(now - asked.since)
        else:
            self.metrics.failed.labels(news.kind).inc()

    def _give_up(self, identifier: str, reason: str, kind: str) -> None:
        asked = self._asked.pop(identifier)
        self._told.setdefault(asked.listener, []).append(Failed(identifier, reason, kind))
        self.metrics.failed.labels(kind).inc()
        if self._queue.remove(identifier) is None:
            for worker in self._workers:
                if identifier in worker.jobs:
                    worker.send(Cancel(identifier))

    def _expire(self) -> None:
        now = self._clock()
        for identifier, asked in list(self._asked.items()):
            if asked.job.deadline is not None and asked.job.deadline <= now:
                self._give_up(identifier, f"it was not done within {asked.job.deadline - asked.since:.3g} s", "late")

    def _assign(self) -> None:
        given: dict[Worker, list[Job]] = {}
        while (job := self._queue.first()) is not None:
            able = [worker for worker in self._workers if worker.fits(job) and not self._is_apart(worker, job)]
            if not able:
                break
            worker = min(able, key=lambda worker: len(worker.jobs))
            worker.jobs[job.id] = self._queue.take()
            given.setdefault(worker, []).append(job)
        for worker, jobs in given.items():
            worker.send(tuple(jobs))

    def _is_apart(self, worker: Worker, job: Job) -> bool:
        """Whether a job would not be alone with a worker, and it or another has to be: its workers died twice."""
        jobs = [*worker.jobs, job.id]
        return len(jobs) > 1 and any(self._asked[one].deaths > 1 for one in jobs if one in self._asked)

    def _bury(self, worker: Worker) -> None:
        how = worker.process.kill()
        self._workers.remove(worker)
        self.metrics.deaths.inc()
        for identifier, job in worker.jobs.items():
            asked = self._asked.get(identifier)
            if asked is None:
                continue
            asked.deaths += 1
            if asked.deaths < ATTEMPTS:
                self._queue.put_back(job)
            else:
                self._give_up(identifier, f"its worker died {asked.deaths} times ({how})", "failed")
        if not worker.ready:
            self._deaths += 1
            if self._deaths >= DEATHS:
                self._break(Refused(f"workers die while they load the models ({how}): is there memory enough?", False))
                return
        self._add_worker(worker.device)

    def _break(self, refused: Refused) -> None:
        self._broken = refused
        for identifier in list(self._asked):
            self._give_up(identifier, refused.reason, "failed")


def _tell_all(told: Mapping[Listener, list[News]]) -> None:
    for listener, news in told.items():
        listener(news)
