"""What operators rely on, line by line, at a `genpipe serve` as it runs in earnest: two workers, a key, every limit set."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import Served

KEY = {"Authorization": "Bearer secret"}
LONG = {"prompt": "a red cat", "steps": 400, "width": 256, "height": 256}
QUICK = {"prompt": "secret words", "steps": 2}


@pytest.fixture(scope="module")
def served(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("loras")
    (folder / "ink.safetensors").write_bytes(b"")
    options = ["--model", str(tiny_checkpoint), "--devices", "cpu:2", "--dtype", "fp32", "--lora-dir", str(folder)]
    options += ["--max-steps", "400", "--max-images", "100", "--max-pixels", "65536", "--max-body", "100000"]
    options += ["--host", "0.0.0.0", "--allow-host", "paint.example", "--max-waiting", "120", "--log-json"]
    made = Served(*options, GENPIPE_API_KEY="secret")
    yield made
    made.kill()


def ask(served: Served, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{served.url}/api/drawings", json=body, headers={**KEY, **headers}, timeout=60)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def failures(served: Served, kind: str) -> float:
    try:
        return served.counted(f'genpipe_failures_total{{kind="{kind}"}}', **KEY)
    except StopIteration:  # none yet
        return 0.0


def running(served: Served) -> float:
    return sum(served.counted(f"genpipe_{name}_images", **KEY) for name in ("running", "waiting"))


def test_it_says_that_it_lives_and_draws_to_everybody_and_the_rest_to_those_with_the_key(served: Served) -> None:
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{served.url}/readyz").json() == {"status": "ready"}
    for path in ("/metrics", "/api/models", "/v1/models", "/sdapi/v1/options"):
        assert httpx.get(served.url + path).status_code == 401
        assert httpx.get(served.url + path, headers=KEY).status_code == 200
    assert httpx.post(f"{served.url}/api/drawings", json=QUICK).status_code == 401


def test_metrics_tell_of_the_queue_waits_steps_batches_images_failures_and_memory(served: Served) -> None:
    def counted(name: str) -> float:
        return served.counted(name, **KEY)

    names = ("genpipe_images_total", "genpipe_steps_total", "genpipe_wait_seconds_count", "genpipe_image_seconds_count")
    before = [counted(name) for name in names]
    answer = httpx.post(f"{served.url}/v1/images/generations", json={**QUICK, "n": 3}, headers=KEY, timeout=60)
    assert answer.status_code == 200
    assert [counted(name) - was for name, was in zip(names, before, strict=True)] == [3, 6, 3, 3]
    assert counted("genpipe_evaluation_images_sum") >= 6 and counted("genpipe_evaluation_images_count") >= 2
    assert counted("genpipe_waiting_images") == counted("genpipe_running_images") == 0
    for process in ("server", "worker-0", "worker-1"):
        assert counted(f'genpipe_memory_bytes{{process="{process}"}}') > 10_000_000


def test_both_workers_draw(served: Served) -> None:
    first, second = served.workers()
    identifier = ask(served, {**LONG, "n": 12}).json()["id"]  # more than one has at a time
    before = [Path(f"/proc/{pid}/stat").read_text().split()[13] for pid in (first, second)]
    until(lambda: [Path(f"/proc/{pid}/stat").read_text().split()[13] for pid in (first, second)] > before)
    until(lambda: served.counted("genpipe_running_images", **KEY) == 12)
    httpx.delete(f"{served.url}/api/drawings/{identifier}", headers=KEY)
    until(lambda: running(served) == 0)


def test_only_its_own_names_and_pages_speak_to_it(served: Served) -> None:
    def status(**headers: str) -> int:
        return ask(served, QUICK, **headers).status_code

    assert status(Host="evil.example") == 421 and status(Host="paint.example") == status(Host="127.0.0.1:1") == 202
    assert status(Origin="https://evil.example") == status(Origin="null") == 403
    assert status(Origin=served.url) == 202
    answer = httpx.options(
        f"{served.url}/api/drawings",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_proxy_of_this_machine_tells_whom_it_speaks_for(served: Served) -> None:
    """As Caddy does, which adds TLS."""
    headers = {**KEY, "Host": "paint.example", "Origin": "https://paint.example"}
    headers |= {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    body = {**QUICK, "response_format": "url"}
    answer = httpx.post(f"{served.url}/v1/images/generations", json=body, headers=headers, timeout=60)
    assert answer.json()["data"][0]["url"].startswith("https://paint.example/files/")
    until(lambda: any("203.0.113.7" in line for line in served.log))


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"steps": 401}, 400, "steps may be up to 400"),
        ({"n": 101}, 400, "n may be up to 100"),
        ({"width": 512, "height": 256}, 400, "the pixels of an image may be up to 65536"),
        ({"upscale": 4, "width": 128, "height": 128}, 400, "the pixels of an image may be up to 65536"),
        ({"prompt": "a" * 100_001}, 413, "the request is larger than 100000 bytes"),
        ({"model": "/etc/passwd"}, 400, "there is no model '/etc/passwd' here"),
        ({"model": "http://localhost/x"}, 400, "there is no model"),
        ({"image": "/etc/passwd"}, 400, "image must be an image's file in base64"),
        ({"prompt": "a <lora:other>"}, 400, "lora"),
        ({"prompt": "a <lora:../loras0/ink>"}, 400, "lora"),
    ],
)
def test_limits_and_names(served: Served, body: dict[str, Any], status: int, error: str) -> None:
    answer = ask(served, {**QUICK, **body})
    assert answer.status_code == status and error in answer.json()["error"].lower() + answer.json()["error"]
    assert "loras0" not in answer.text.replace("../loras0", "") and "Traceback" not in answer.text


def test_what_is_cancelled_or_no_longer_listened_to_ends_within_a_step(served: Served) -> None:
    before = failures(served, "cancelled")
    identifier = ask(served, {**LONG, "n": 4}).json()["id"]
    until(lambda: served.counted("genpipe_running_images", **KEY) == 4)
    httpx.delete(f"{served.url}/api/drawings/{identifier}", headers=KEY)
    until(lambda: failures(served, "cancelled") == before + 4 and running(served) == 0)
    headers = {**KEY, "Accept": "text/event-stream"}
    with httpx.stream("POST", f"{served.url}/api/drawings", json={**LONG, "n": 4}, headers=headers) as response:
        next(lines := response.iter_lines())
        del lines  # and hang up
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/images/generations", json={**LONG, "n": 2}, headers=KEY, timeout=1)
    until(lambda: failures(served, "cancelled") == before + 10 and running(served) == 0)


def test_nobody_waits_behind_anothers_hundred_and_a_full_queue_says_when_to_come_again(served: Served) -> None:
    drawn = served.counted("genpipe_images_total", **KEY)
    hundred = ask(served, {**QUICK, "steps": 60, "n": 100}, **{"X-Client": "a"}).json()["id"]
    full = ask(served, {**QUICK, "n": 90}, **{"X-Client": "a"})
    assert full.status_code == 429 and 1 <= int(full.headers["retry-after"]) <= 600
    headers = {**KEY, "X-Client": "b"}
    one = httpx.post(f"{served.url}/v1/images/generations", json=QUICK, headers=headers, timeout=60)
    assert one.status_code == 200 and served.counted("genpipe_images_total", **KEY) - drawn < 60
    httpx.delete(f"{served.url}/api/drawings/{hundred}", headers=KEY)
    until(lambda: running(served) == 0)


def test_a_worker_that_is_killed_is_started_again_and_nothing_is_lost(served: Served) -> None:
    deaths = served.counted("genpipe_worker_deaths_total", **KEY)
    identifier = ask(served, {**QUICK, "steps": 300, "n": 4}).json()["id"]
    until(lambda: served.counted("genpipe_running_images", **KEY) == 4)
    os.kill(served.workers()[0], signal.SIGKILL)

    def state() -> dict[str, Any]:
        return httpx.get(f"{served.url}/api/drawings/{identifier}", headers=KEY).json()

    until(lambda: state()["done"], 120)
    assert all("url" in image for image in state()["images"])
    assert served.counted("genpipe_worker_deaths_total", **KEY) == deaths + 1
    until(lambda: len(served.workers()) == 2)


def test_a_request_ends_at_its_deadline(tiny_checkpoint: Path) -> None:
    model = ("--model", str(tiny_checkpoint), "--devices", "cpu", "--dtype", "fp32")
    served = Served(*model, "--max-seconds", "0.5", "--max-steps", "900")
    try:
        answer = httpx.post(f"{served.url}/v1/images/generations", json={**LONG, "steps": 900, "n": 8}, timeout=60)
        assert answer.status_code == 504 and "it was not done within 0.5 s" in answer.text
    finally:
        served.kill()


def test_it_logs_every_request_and_no_prompt_and_ends_well(served: Served) -> None:
    code, said = served.end(signal.SIGTERM)
    lines = [json.loads(line) for line in said.splitlines()]
    assert code == 0 and len(lines) > 20
    assert all({"time", "client", "method", "path", "status", "seconds"} == line.keys() for line in lines)
    assert (
        "secret" not in said
        and "red cat" not in said
        and not any("metrics" in line["path"] and line["status"] == 200 for line in lines)
    )
