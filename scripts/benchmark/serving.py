"""A server to measure, and clients of it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

PATIENCE = 600.0
PROMPTS = ("pirate ship", "a red cat", "two dogs", "castle in the snow", "three balloons", "an owl at night")


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an application at a free port of this machine, in a thread of this process, and give its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@dataclass
class Server:
    """`genpipe serve` in a process of its own."""

    url: str
    process: "subprocess.Popen[str]"

    def workers(self) -> list[int]:
        """The processes that draw (on Linux)."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = [
            int(pid) for task in path.parent.parent.iterdir() for pid in (task / "children").read_text().split()
        ]
        return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def kill_worker(self) -> bool:
        """Kill one of them; False where there is none at the moment."""
        with suppress(OSError):
            for pid in self.workers():
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def metrics(self) -> dict[str, float]:
        """What it counts."""
        lines = requests.get(f"{self.url}/metrics", timeout=PATIENCE).text.splitlines()
        return {name: float(value) for line in lines if line[0] != "#" for name, _, value in [line.rpartition(" ")]}


@contextmanager
def served(*arguments: str, cwd: Path | None = None) -> Iterator[Server]:
    """Start a server with these options, and wait until it draws."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "genpipe", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        if "listens at" not in line:
            raise RuntimeError(f"the server did not start: {line}")
        server = Server(line.split()[-1].rstrip("/"), process)
        # What it logs has to be read, or it would wait.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        deadline = time.monotonic() + PATIENCE
        while requests.get(f"{server.url}/readyz", timeout=PATIENCE).status_code != 200:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the server was not ready in time")
            time.sleep(0.01)
        yield server
        process.terminate()
        process.wait(timeout=120)
    finally:
        process.kill()


@dataclass
class Outcome:
    """What became of one request: seconds to its first step and to its image, the image's file, or why there is none."""

    wait: float = 0.0
    took: float = 0.0
    data: bytes | None = None
    error: str | None = None


def draw(url: str, body: dict[str, Any], client: str, *, leaves: bool = False) -> Outcome:
    """Ask for one image and follow it; where there is no room, come again when told to.

    Args:
        leaves: stop listening after the first step.
    """
    started, outcome, name = time.perf_counter(), Outcome(), ""
    headers = {"Accept": "text/event-stream", "X-Client": client}
    while True:
        with requests.post(f"{url}/api/drawings", json=body, headers=headers, stream=True, timeout=PATIENCE) as answer:
            if answer.status_code == 429:
                time.sleep(float(answer.headers["Retry-After"]))
                continue
            if answer.status_code != 200:
                return Outcome(error=answer.text)
            for line in answer.iter_lines():
                if line.startswith(b"event: "):
                    name = line[7:].decode()
                elif line.startswith(b"data: "):
                    said = json.loads(line[6:])
                    if name == "step" and not outcome.wait:
                        outcome.wait = time.perf_counter() - started
                        if leaves:
                            return outcome
                    elif name == "failed":
                        outcome.error = said["error"]
                    elif name == "image":
                        outcome.data = requests.get(url + said["url"], timeout=PATIENCE).content
                        outcome.took = time.perf_counter() - started
            if outcome.data is None and outcome.error is None:
                outcome.error = "the stream ended without an image"
            return outcome


def bodies(count: int, seed: int, **settings: Any) -> list[dict[str, Any]]:
    """Requests for different images."""
    rng = random.Random(seed)
    return [
        {"prompt": rng.choice(PROMPTS), "seed": rng.getrandbits(32), "previews": False, **settings}
        for _ in range(count)
    ]


def rate_of(work: Callable[[], Any], images: int) -> float:
    """Images per second."""
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)
