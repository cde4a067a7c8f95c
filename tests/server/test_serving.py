"""`genpipe serve`, as it is started in a shell."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from genpipe.server.options import Options
from genpipe.server.serving import serve
from tests.server.conftest import ROOT, Served, events


@pytest.fixture
def served(tiny_checkpoint: Path) -> Iterator[Served]:
    made = Served("--model", str(tiny_checkpoint), "--devices", "cpu", "--dtype", "fp32")
    yield made
    made.kill()


def test_sigterm_ends_it_when_what_was_taken_is_done(served: Served) -> None:
    body: dict[str, Any] = {"prompt": "a", "steps": 100, "n": 4}
    identifier = httpx.post(f"{served.url}/api/drawings", json=body).json()["id"]
    with httpx.stream("GET", f"{served.url}/api/drawings/{identifier}/events", timeout=60) as response:
        served.process.send_signal(signal.SIGTERM)
        told = events(response)
    assert sum(name == "image" for name, _ in told) == 4
    code, said = served.ended()
    assert code == 0 and "Traceback" not in said, said


def test_ctrl_c_ends_it_at_once(served: Served) -> None:
    httpx.post(f"{served.url}/api/drawings", json={"prompt": "a", "steps": 150, "n": 16})
    code, said = served.end(signal.SIGINT)
    assert code == 130 and said.endswith("genpipe: interrupted\n") and "Traceback" not in said, said


def test_sigterm_lets_go_of_what_is_not_done_in_time(tiny_checkpoint: Path) -> None:
    model = ("--model", str(tiny_checkpoint), "--devices", "cpu", "--dtype", "fp32")
    served = Served(*model, "--drain-seconds", "0.5", "--max-steps", "900")
    try:
        body: dict[str, Any] = {"prompt": "a", "steps": 900, "n": 16, "width": 256, "height": 256}
        identifier = httpx.post(f"{served.url}/api/drawings", json=body).json()["id"]
        with httpx.stream("GET", f"{served.url}/api/drawings/{identifier}/events", timeout=60) as response:
            served.process.send_signal(signal.SIGTERM)
            told = events(response)
        failed = [said["error"] for name, said in told if name == "failed"]
        assert failed == ["the server was shut down"] * 16 and told[-1][0] == "done"
        code, said = served.ended()
        assert code == 0 and "not everything was done within 0.5 s" in said and "Traceback" not in said, said
    finally:
        served.kill()


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
        (["--devices", "cuda:99"], 2, "device 'cuda:99' is not available"),
        (["--devices", "cpu,cuda:99"], 2, "device 'cuda:99' is not available"),
        (["--model", str(ROOT)], 2, "genpipe"),
        (["--host", "name.invalid", "--insecure"], 1, "cannot listen at name.invalid:0"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(arguments: list[str], code: int, error: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GENPIPE_API_KEY": ""}
    command = [sys.executable, "-m", "genpipe", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == code and len(lines) == 1 and error in lines[0] and not done.stdout, done.stderr


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "genpipe", "serve", "--port", str(port)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 1 and f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1
