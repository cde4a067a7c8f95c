"""`genpipe serve`, as it is started in a shell."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from genpipe.server.options import Options
from genpipe.server.serving import serve
from tests.server.conftest import events

ROOT = Path(__file__).parents[2]


class Served:
    """The command, running."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "genpipe", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        match = re.search(r"genpipe listens at (\S+)/\n", self.process.stderr.readline())
        assert match is not None
        self.url = match[1]
        deadline = time.monotonic() + 120
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def end(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture
def served(tiny_checkpoint: Path) -> Iterator[Served]:
    made = Served("--model", str(tiny_checkpoint), "--devices", "cpu", "--dtype", "fp32")
    yield made
    made.process.kill()
    made.process.wait()


def test_sigterm_ends_it_when_what_was_taken_is_done(served: Served) -> None:
    body: dict[str, Any] = {"prompt": "a", "steps": 100, "n": 4}
    identifier = httpx.post(f"{served.url}/api/drawings", json=body).json()["id"]
    with httpx.stream("GET", f"{served.url}/api/drawings/{identifier}/events", timeout=60) as response:
        served.process.send_signal(signal.SIGTERM)
        told = events(response)
    assert sum(name == "image" for name, _ in told) == 4
    _, said = served.process.communicate(timeout=60)
    assert served.process.returncode == 0 and "Traceback" not in said, said


def test_ctrl_c_ends_it_at_once(served: Served) -> None:
    httpx.post(f"{served.url}/api/drawings", json={"prompt": "a", "steps": 150, "n": 16})
    code, said = served.end(signal.SIGINT)
    assert code == 130 and said.endswith("genpipe: interrupted\n") and "Traceback" not in said, said


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_interrupts_also_a_process_that_was_started_with_it_ignored(tiny_checkpoint: Path, before: Any) -> None:
    """As a script's `genpipe serve &` is."""

    def interrupt(address: str) -> None:
        httpx.get(f"{address}healthz", timeout=None)  # answered once uvicorn has taken over the signals
        os.kill(os.getpid(), signal.SIGINT)

    def listening(address: str) -> None:
        threading.Thread(target=interrupt, args=(address,), daemon=True).start()

    usual = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(KeyboardInterrupt):
            serve(Options((str(tiny_checkpoint),), port=0, devices="cpu"), listening=listening)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--host", "0.0.0.0"], 2, "host '0.0.0.0' is open to others"),
        (["--model", "missing"], 2, "missing"),
        (["--max-steps", "0"], 2, "max_steps must be a whole number from 1 to 1000"),
        (["--devices", "gpu"], 2, "are not devices"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(arguments: list[str], code: int, error: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GENPIPE_API_KEY": ""}
    command = [sys.executable, "-m", "genpipe", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("genpipe listens")]
    assert done.returncode == code and len(lines) == 1 and error in lines[0], done.stderr


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "genpipe", "serve", "--port", str(port)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 1 and f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1
