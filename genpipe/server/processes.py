"""How workers are started."""

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

from genpipe.server import worker


class Process(Protocol):
    """A process that draws, and the connection to it."""

    connection: Connection

    @property
    def pid(self) -> int | None:
        """The system's number of it."""
        ...

    def kill(self) -> str:
        """End it if it still runs, and say how it ended."""
        ...


@dataclass
class SpawnedProcess:
    """A worker in a process of its own."""

    connection: Connection
    process: BaseProcess

    @property
    def pid(self) -> int | None:
        """The system's number of it."""
        return self.process.pid

    def kill(self) -> str:
        """End it if it still runs, and say how it ended."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def spawn() -> SpawnedProcess:
    """Start a worker's process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.main, args=(theirs,), name="genpipe-worker", daemon=True)
    process.start()
    theirs.close()
    return SpawnedProcess(ours, process)
