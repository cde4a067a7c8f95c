"""The jobs that wait: bounded, and in an order that is fair between clients."""

from collections import OrderedDict, deque
from collections.abc import Iterator

from genpipe.server.jobs import Job

# Of so many jobs that are taken one is low, where there are low ones.
LOW_SHARE = 8


class QueueFull(Exception):
    """There is no room for what was asked for."""


class FairQueue:
    """Jobs in the order in which they are to be drawn.

    Clients take turns, one job each, so that nobody waits behind another's hundred. Jobs that are low give way to the others,
    except that one of `LOW_SHARE` is low while there are some. Jobs that are put back come first.

    Args:
        most: how many jobs it holds.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._back: deque[Job] = deque()
        # The clients of each, the one whose turn it is first.
        self._usual: OrderedDict[str, deque[Job]] = OrderedDict()
        self._low: OrderedDict[str, deque[Job]] = OrderedDict()
        self._since_low = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        yield from self._back
        for clients in (self._usual, self._low):
            for jobs in clients.values():
                yield from jobs

    def put(self, jobs: list[Job]) -> None:
        """Add jobs behind the others of their client: all of them, or none.

        Raises:
            QueueFull: they do not fit.
        """
        if self._count + len(jobs) > self.most:
            raise QueueFull(f"{self._count} of {self.most} places are taken and {len(jobs)} are asked for: try later")
        for job in jobs:
            clients = self._low if job.low else self._usual
            clients.setdefault(job.client, deque()).append(job)
        self._count += len(jobs)

    def put_back(self, job: Job) -> None:
        """Add a job that was taken before; there is always room for it."""
        self._back.append(job)
        self._count += 1

    def first(self) -> Job | None:
        """Give the job whose turn it is, without taking it."""
        if self._back:
            return self._back[0]
        clients = self._next_clients()
        return next(iter(clients.values()))[0] if clients else None

    def take(self) -> Job:
        """Take the job whose turn it is.

        Raises:
            LookupError: there is none.
        """
        if self._back:
            self._count -= 1
            return self._back.popleft()
        clients = self._next_clients()
        if not clients:
            raise LookupError("no job waits")
        self._since_low = 0 if clients is self._low else self._since_low + 1
        client, jobs = clients.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            clients[client] = jobs  # behind the other clients
        self._count -= 1
        return job

    def remove(self, identifier: str) -> Job | None:
        """Take out the job of this id; None if it does not wait."""
        job = next((one for one in self if one.id == identifier), None)
        if job is None:
            return None
        if job in self._back:
            self._back.remove(job)
        else:
            clients = self._low if job.low else self._usual
            clients[job.client].remove(job)
            if not clients[job.client]:
                del clients[job.client]
        self._count -= 1
        return job

    def _next_clients(self) -> OrderedDict[str, deque[Job]]:
        turn = self._low and (not self._usual or self._since_low >= LOW_SHARE - 1)
        return self._low if turn else self._usual
