"""An engine whose worker draws in a thread of the test's own process, with the tiny checkpoint."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from genpipe.images import encode_image
from genpipe.pipeline import Pipeline
from genpipe.request import Request
from genpipe.server.app import create_app
from genpipe.server.batches import Batches
from genpipe.server.engine import Engine
from genpipe.server.jobs import Drawn, Failed, Job, News, Stepped
from genpipe.server.sizes import Sizes
from genpipe.server.worker import Opened, Start, serve
from genpipe.spec import ModelSpec
from genpipe.workers.described import describe
from scripts.benchmark.serving import listening

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
SECONDS = 60_000.0  # milliseconds that a page may take for anything; the machine may be busy
# Opens the page in a browser of this language.
Open = Callable[..., Any]


@dataclass
class Thread:
    """A worker in a thread, in the place of a process; `kill` cuts its connection."""

    connection: Connection
    pid: int | None = None

    def kill(self) -> str:
        self.connection.close()
        return "its thread was let go"


def threads(pipelines: Mapping[str, Pipeline], started: list[Thread] | None = None) -> Callable[[], Thread]:
    """Launch workers that draw with these."""

    def launch() -> Thread:
        ours, theirs = Pipe()
        made = Thread(ours)
        if started is not None:
            started.append(made)
        threading.Thread(target=work, args=(theirs,), daemon=True).start()
        return made

    def work(connection: Connection) -> None:
        start: Start = connection.recv()
        models = {name: describe(pipeline) for name, pipeline in pipelines.items()}
        with contextlib.suppress(RuntimeError, OSError):  # as the process would die of it
            tokenizers = {name: tuple(pipeline.tokenizers) for name, pipeline in pipelines.items()}
            connection.send(Opened(models, "cpu", 0, tokenizers=tokenizers))
            serve(connection, Batches(pipelines, Sizes(pipelines, most=start.most or 8)))
        # Not `close`, which another thread that reads would not notice.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as ended:
            ended.shutdown(socket.SHUT_RDWR)

    return launch


class Served:
    """`genpipe serve` as it is started in a shell, with the variables of `environment`; `log` is what it has said."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "genpipe", "serve", "--port", "0", *arguments]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
        self.log: list[str] = []
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        match = re.fullmatch(r"genpipe listens at (\S+)/\n", said)
        assert match is not None, said
        self.url = match[1]
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()), daemon=True)
        self._reader.start()
        assert httpx.get(f"{self.url}/readyz").status_code == 200

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; see `ended`."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Wait for the end, and give the status that it ends with and all that it said."""
        code = self.process.wait(timeout=60)
        self._reader.join()
        return code, "".join(self.log)

    def workers(self) -> list[int]:
        """The processes that draw, the oldest first."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        found = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return sorted(pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def counted(self, name: str, **headers: str) -> float:
        """One of the values of /metrics."""
        lines = httpx.get(f"{self.url}/metrics", headers=headers).text.splitlines()
        return next(float(value) for line in lines for given, _, value in [line.rpartition(" ")] if given == name)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Heard:
    """Listens to jobs, and waits for what becomes of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.steps: dict[str, list[Stepped]] = {}
        self.ends: dict[str, Drawn | Failed] = {}
        self.order: list[str] = []

    def __call__(self, news: list[News]) -> None:
        with self._changed:
            for one in news:
                if isinstance(one, Stepped):
                    self.steps.setdefault(one.id, []).append(one)
                else:
                    assert one.id not in self.ends, "told twice"
                    self.ends[one.id] = one
                    self.order.append(one.id)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), (self.ends, self.steps.keys())

    def wait(self, *identifiers: str, seconds: float = 60.0) -> list[Drawn | Failed]:
        self.until(lambda: all(identifier in self.ends for identifier in identifiers), seconds)
        return [self.ends[identifier] for identifier in identifiers]


@pytest.fixture(scope="session")
def pipe(tiny_checkpoint: Path) -> Pipeline:
    made = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    made.name = "tiny"
    return made


@pytest.fixture(scope="session")
def specs(tiny_checkpoint: Path) -> dict[str, ModelSpec]:
    return {"tiny": ModelSpec(str(tiny_checkpoint), device="cpu", dtype="fp32")}


@contextlib.contextmanager
def opened_engine(pipe: Pipeline, specs: dict[str, ModelSpec]) -> Iterator[Engine]:
    made = Engine(specs, devices="cpu", launch=threads({"tiny": pipe}))
    made.open()
    assert made.wait(30)
    yield made
    made.close()


@pytest.fixture
def engine(pipe: Pipeline, specs: dict[str, ModelSpec]) -> Iterator[Engine]:
    with opened_engine(pipe, specs) as made:
        yield made


@pytest.fixture(scope="session")
def shared_url(pipe: Pipeline, specs: dict[str, ModelSpec]) -> Iterator[str]:
    """Where a server listens to tests that have nothing drawn."""
    with opened_engine(pipe, specs) as engine, listening(create_app(engine)) as address:
        yield address


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    """Where a server of the tiny checkpoint listens."""
    with listening(create_app(engine)) as address:
        yield address


@pytest.fixture
def job(pipe: Pipeline) -> Callable[..., Job]:
    """Make a job; its seed is its own."""

    def make(identifier: str, prompt: str = "a red cat", *, seed: int = 1, client: str = "", **settings: Any) -> Job:
        own = {key: settings.pop(key) for key in ("low", "suffix", "previews", "deadline", "model") if key in settings}
        given: Any = {"steps": 3, "guidance_scale": 4.0, **settings}
        (request,) = pipe.requests(prompt, seed=seed, **given)
        return Job(identifier, request, **{"model": "tiny", "client": client, **own})

    return make


def encoded(image: Image.Image) -> str:
    """An image's file in base64."""
    return base64.b64encode(encode_image(image, ".png")).decode()


def events(response: Any) -> list[tuple[str, dict[str, Any]]]:
    """The server-sent events of a response."""
    found, name = [], ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append((name, json.loads(line.removeprefix("data: "))))
    return found


def picture(pipe: Pipeline, request: Request) -> Any:
    """What the pipeline draws of a request."""
    latents: Any = None
    for state in pipe.stream([request]):
        latents = state.latents
    return pipe.decode(latents, [request])[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, driven by Playwright, whose event loop nothing else in this thread can run beside."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def opened(browser: Any, url: str) -> Iterator[Open]:
    """Open the page; what it complains of in the browser's console fails the test."""
    contexts, complaints = [], []

    def open_page(locale: str = "en-GB", address: str = url, context: Any = None) -> Any:
        if context is None:
            context = browser.new_context(locale=locale)
            context.set_default_timeout(SECONDS)
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A prompt that cannot be read is answered so, and said under it.
    assert not [one for one in complaints if "status of 400" not in one]


def until(page: Any, expression: str) -> None:
    """Wait until an expression of the page is true; the page's policy forbids the browser's own way to wait for that."""
    deadline = time.monotonic() + SECONDS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, page.locator("main").inner_text()
        page.wait_for_timeout(30)


def drawn(page: Any, count: int) -> Any:
    """Wait for pictures."""
    until(page, f"document.querySelectorAll('#pictures figure img:not(.preview)').length === {count}")
    until(page, "!document.querySelector('#pictures progress')")
    return page.locator("#pictures figure")
