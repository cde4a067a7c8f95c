"""A worker as the engine knows it: what it has to do, and whether it has room for more."""

import contextlib
from dataclasses import dataclass, field

from genpipe.server.jobs import Job, Stepped
from genpipe.server.processes import Process
from genpipe.server.worker import Cancel, Start


@dataclass(eq=False)
class Worker:
    """A worker, and the jobs that it has.

    Attributes:
        name: of its metrics.
        device: that it is given; None is the best there is.
        process: that draws.
        most: images that it has at a time.
        ready: whether its models are loaded.
        jobs: those that it has, by their ids, the cancelled ones among them.
        ending: ids of those with one step left: others come meanwhile, so that the networks never wait for them.
    """

    name: str
    device: str | None
    process: Process
    most: int
    ready: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)

    def send(self, message: Start | tuple[Job, ...] | Cancel) -> None:
        """Tell it something; where it is dead, its connection tells of that."""
        with contextlib.suppress(OSError):
            self.process.connection.send(message)

    def fits(self, job: Job) -> bool:
        """Whether it has room for a job now: of one model it draws one set of LoRAs at a time."""
        others = any(one.model == job.model and one.request.loras != job.request.loras for one in self.jobs.values())
        return self.ready and len(self.jobs) - len(self.ending) < self.most and not others

    def steps(self, news: Stepped) -> None:
        """Note how far a job is."""
        if news.id in self.jobs and news.step >= news.steps - 1:
            self.ending.add(news.id)

    def let_go(self, identifier: str) -> None:
        """Have a job no longer."""
        self.jobs.pop(identifier, None)
        self.ending.discard(identifier)
