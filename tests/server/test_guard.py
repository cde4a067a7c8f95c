"""Who may speak to the server, and how much they may say."""

import json
import logging
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from genpipe.server.app import create_app
from genpipe.server.engine import Engine
from genpipe.server.limits import Limits
from genpipe.server.options import Options
from tests.server.conftest import listening

BODY = {"prompt": "a", "steps": 1}


def test_a_key_opens_every_api_in_each_clients_way(engine: Engine) -> None:
    with listening(create_app(engine, key="secret")) as url:
        for path in ("/api/models", "/v1/models", "/sdapi/v1/options", "/metrics", "/api/settings"):
            assert httpx.get(url + path).status_code == 401, path
            assert httpx.get(url + path, headers={"Authorization": "Bearer secreT"}).status_code == 401
            for headers in ({"Authorization": "Bearer secret"}, {"X-Api-Key": "secret"}):
                assert httpx.get(url + path, headers=headers).status_code == 200, path
            assert httpx.get(url + path, auth=("anybody", "secret")).status_code == 200
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert httpx.get(url + path).status_code == 200, path
        denied = httpx.post(f"{url}/api/drawings", json=BODY, headers={"Authorization": "Basic !!"})
        assert denied.status_code == 401 and "Bearer" in denied.headers["www-authenticate"]


def test_other_sites_pages_may_not_speak_to_it(engine: Engine) -> None:
    with listening(create_app(engine, origins=("https://friend.example",))) as url:
        for origin in ("https://evil.example", "null", "http://[", f"{url}.evil.example"):
            assert httpx.post(f"{url}/api/drawings", json=BODY, headers={"Origin": origin}).status_code == 403, origin
        assert httpx.post(f"{url}/api/drawings", json=BODY, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        for headers in ({"Origin": url}, {"Sec-Fetch-Site": "same-origin"}, {}):
            assert httpx.post(f"{url}/api/drawings", json=BODY, headers=headers).status_code == 202
        friend = httpx.post(f"{url}/api/drawings", json=BODY, headers={"Origin": "https://friend.example"})
        assert friend.status_code == 202 and friend.headers["access-control-allow-origin"] == "https://friend.example"
    with listening(create_app(engine)) as url:
        assert "access-control-allow-origin" not in httpx.get(url, headers={"Origin": "https://friend.example"}).headers


def test_names_that_were_made_to_point_here_are_refused(engine: Engine) -> None:
    with listening(create_app(engine, hosts=("paint.example",))) as url:
        port = urlsplit(url).port
        for host in (f"evil.example:{port}", "", "127.0.0.1.evil.example", "[::1", "a b"):
            assert httpx.get(f"{url}/healthz", headers={"Host": host}).status_code in (400, 421), host
        for host in (f"localhost:{port}", "127.0.0.1", "[::1]:8000", "paint.example", "PAINT.example:443"):
            assert httpx.get(f"{url}/healthz", headers={"Host": host}).status_code == 200, host


def test_bodies_are_bounded_whether_they_say_their_size_or_not(engine: Engine) -> None:
    with listening(create_app(engine, limits=Limits(body=1000))) as url:
        said = httpx.post(f"{url}/api/drawings", content=b" " * 1001)
        streamed = httpx.post(f"{url}/api/drawings", content=iter([b" " * 600, b" " * 600]))
        assert said.status_code == streamed.status_code == 413
        assert said.json()["error"] == "the request is larger than 1000 bytes: make its images smaller"
        assert httpx.post(f"{url}/v1/models", content=b"").status_code == 405


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{",
        b'"x"',
        b"[" * 100_000,
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"a":1e999}',
    ],
)
def test_what_is_not_a_json_object_is_refused(shared_url: str, content: bytes) -> None:
    for path in ("/api/drawings", "/v1/images/generations", "/sdapi/v1/txt2img", "/api/read", "/sdapi/v1/options"):
        answer = httpx.post(shared_url + path, content=content)
        if path != "/sdapi/v1/txt2img" or content:
            assert answer.status_code == 400, (path, answer.text)
        assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "path",
    ["/page/../app.py", "/page/%2e%2e/app.py", "/files/../../etc/passwd", "/files/..%2f..%2fetc%2fpasswd-0.png",
     "/page//etc/passwd", "/static-offline-docs/../core.py", "/api/drawings/%00", "/files/x-99999999999999999999.png"],
)  # fmt: skip
def test_paths_lead_nowhere_else(shared_url: str, path: str) -> None:
    parts = urlsplit(shared_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as raw:  # clients tidy paths up
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := raw.recv(65536):
            answer += part
    assert answer.split()[1] in (b"404", b"400") and b"root:" not in answer and b"import" not in answer


def test_logs_name_no_prompts_and_no_files(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "genpipe.server"), listening(create_app(engine, json_log=True)) as url:
        httpx.post(f"{url}/v1/images/generations?prompt=secret", json={"prompt": "secret words", "steps": 1})
        httpx.get(f"{url}/files/abc-0.png")
        httpx.get(f"{url}/readyz")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "genpipe.server"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v1/images/generations", 200),
        ("GET", "/files/…", 404),
    ]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("json_log", [True, False])
def test_prompts_are_logged_where_it_is_asked_for(
    engine: Engine, caplog: pytest.LogCaptureFixture, json_log: bool
) -> None:
    app = create_app(engine, json_log=json_log, log_prompts=True)
    with caplog.at_level(logging.INFO, "genpipe.server"), listening(app) as url:
        httpx.post(
            f"{url}/v1/images/generations", json={"prompt": "my\nwords", "steps": 1}, headers={"X-Client": "Ann"}
        )
    first, *_ = [record.getMessage() for record in caplog.records if record.name == "genpipe.server"]
    if json_log:
        said = json.loads(first)
        assert (said["prompt"], said["client"], said["images"]) == ("my\nwords", "127.0.0.1 Ann", 1)
    assert "my\\nwords" in first and "\n" not in first


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"host": "0.0.0.0"}, "host '0.0.0.0' is open to others: give --api-key"),
        ({"host": "example.org"}, "is open to others"),
        ({"models": ("a/x", "b/x")}, "two models are called 'x'"),
        ({"devices": "gpu"}, "are not devices"),
        ({"api_key": "ключ"}, "the API key must be ASCII"),
    ],
)
def test_a_server_that_lets_strangers_in_is_not_started(
    options: dict[str, Any], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GENPIPE_API_KEY", raising=False)
    with pytest.raises(ValueError, match=error):
        Options(**options).check()


def test_options_that_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENPIPE_API_KEY", "secret")
    assert Options(host="0.0.0.0").api_key == "secret"
    Options(host="0.0.0.0").check()
    monkeypatch.delenv("GENPIPE_API_KEY")
    for options in (Options(), Options(host="localhost"), Options(host="::1"), Options(host="::", insecure=True)):
        options.check()
    assert Options(host="::1").address(80) == "http://[::1]:80/" and list(Options().specs()) == ["embedded"]
    assert list(Options(models=("x/dreamy.safetensors", "owner/name")).specs()) == ["dreamy", "name"]
