"""Requests that should break a server: none may, and none may be answered with a failure of the server's own."""

import base64
import io
import json
import random
import socket
import tempfile
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from PIL import Image

from scripts.benchmark.serving import Server, served

PATHS = (
    *(
        "/api/drawings",
        "/api/read",
        "/api/tokens",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
    ),
    *("/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/png-info", "/sdapi/v1/options", "/sdapi/v1/interrupt"),
)
KEYS = (
    *(
        "prompt",
        "seed",
        "steps",
        "guidance_scale",
        "height",
        "width",
        "negative_prompt",
        "sampler",
        "image",
        "mask",
        "n",
    ),
    *(
        "control",
        "loras",
        "model",
        "format",
        "priority",
        "strength",
        "init_images",
        "styles",
        "override_settings",
        "size",
    ),
    *("outpaint", "crop", "upscale", "vary", "stream", "partial_images", "judge", "path", "__class__", "previews"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\0", "\ud800", "a" * 20_000, "(" * 5000, "[a|b]" * 500, "<lora:../../etc/passwd:1>", "{a|b}" * 300),
    *("../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "data:image/png;base64,AAAA"),
    *("SELECT 1", "<script>", "%s%n", "Euler a", "1024x1024", "9" * 5000, [], [1], {}, {"path": "/etc/passwd"}),
    *([[]] * 3, {"image": {"path": "/etc/passwd", "sha256": "0"}}, ["x"] * 1000),
)
# Texts in which files say what made them, as other programs and nobody write them.
TEXT_KEYS = (b"genpipe", b"parameters", b"prompt", b"invokeai_metadata", b"sd-metadata", b"comment", b"Description")
TEXTS = (
    *(
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b"{}",
        b"null",
        b"\xff\xfe",
        b"x",
        b"9" * 5000,
        b'{"image": {"path": "/etc/passwd"}}',
    ),
    *(
        b'{"prompt": "a", "seed": 1e999, "steps": -1}',
        b'{"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0]}}}',
    ),
    *(b"a\nSteps: 1e9, Sampler: , CFG scale: nan, Seed: -1, Size: 0x99999999999999", b"a\nSteps: " + b"9" * 5000),
    *(
        b'{"1": {"class_type": "KSampler", "inputs": {"seed": [], "positive": ["2", 9]}}, "2": []}',
        b"<lora:/etc/passwd:1>",
    ),
)


def hostile(count: int, seed: int = 0) -> dict[str, Any]:
    """Send hostile requests, and tell how they were answered.

    Raises:
        RuntimeError: an answer is a failure of the server, holds a traceback, or the server is gone or has written a file.
    """
    rng, statuses = random.Random(seed), Counter[int]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(
            "--max-seconds", "5", "--max-steps", "2", "--max-pixels", "65536", "--max-images", "2", cwd=folder
        ) as server:
            for number in range(count):
                kind = rng.choice((_fields, _fields, _bytes, _images, _multipart, _raw))
                status, body = kind(rng, server)
                statuses[status] += 1
                if (status >= 500 and status not in (503, 504)) or "Traceback" in body:
                    raise RuntimeError(
                        f"request {number} ({kind.__name__}, seed {seed}) was answered {status}: {body[:500]}"
                    )
            alive = requests.get(f"{server.url}/readyz", timeout=60).status_code
            drawn = requests.post(
                f"{server.url}/v1/images/generations", json={"prompt": "ship", "steps": 2}, timeout=60
            )
            left = sorted(str(path) for path in folder.rglob("*"))
        if alive != 200 or drawn.status_code != 200 or left:
            raise RuntimeError(f"the server says {alive}, draws {drawn.status_code} and left {left}")
    return {"requests": count, "statuses": {str(status): number for status, number in sorted(statuses.items())}}


def _post(server: Server, path: str, content: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    try:
        answer = requests.post(server.url + path, data=content, headers=headers, timeout=60)
    except requests.ConnectionError:
        return 0, ""  # it hung up, as it may; whether it lives is asked at the end
    return answer.status_code, answer.text


def _fields(rng: random.Random, server: Server) -> tuple[int, str]:
    """JSON of known keys with values of any kind."""
    body = {rng.choice(KEYS): rng.choice(VALUES) for _ in range(rng.randint(1, 4))}
    if rng.random() < 0.7:
        body.setdefault("prompt", "ship")
    return _post(server, rng.choice(PATHS), json.dumps(body).encode())


def _bytes(rng: random.Random, server: Server) -> tuple[int, str]:
    """Bodies that are no JSON, or more of it than is good."""
    content = rng.choice(
        (b"", b"{", b"[" * 200_000, b'{"a":' * 50_000, b"\xff\xfe\x00", rng.randbytes(1000), b'{"prompt":"\\ud800"}', b"null",
         b'{"prompt":"a","prompt":"b"}', b"\x1f\x8b" + rng.randbytes(100), b" " * 10**6)
    )  # fmt: skip
    headers = rng.choice(
        (None, {"Content-Type": "application/json"}, {"Content-Encoding": "gzip"}, {"Content-Type": "text/xml; charset=utf-7"},
         {"Content-Type": "multipart/form-data"}, {"Authorization": "Basic ////"}, {"X-Client": "é" * 100, "Accept": "*"})
    )  # fmt: skip
    safe = (
        None
        if headers is None
        else {name: value.encode("latin-1").decode("latin-1") for name, value in headers.items()}
    )
    return _post(server, rng.choice(PATHS), content, safe)


@cache
def _packed(byte: bytes, count: int) -> bytes:
    return zlib.compress(byte * count)


def _bomb(rng: random.Random) -> bytes:
    """An image's file that is none, is damaged, or is far larger than it looks."""
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")))
    whole = data.getvalue()
    side = rng.choice((20_000, 65_000, 2**31 - 1))

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    text = chunk(b"zTXt", b"genpipe\0\0" + _packed(b"[", 5_000_000))
    said = chunk(b"tEXt", rng.choice(TEXT_KEYS) + b"\0" + rng.choice(TEXTS))
    small = (64).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    pixels = zlib.compress(bytes(64 * 193))
    return rng.choice(
        (
            whole[: rng.randint(0, len(whole))],
            bytes(byte ^ (rng.random() < 0.02) * rng.randrange(256) for byte in whole),
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", _packed(b"\0", 10**6)) + chunk(b"IEND", b""),
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", small) + said + chunk(b"IDAT", pixels) + chunk(b"IEND", b""),
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", small) + text + chunk(b"IDAT", pixels) + chunk(b"IEND", b""),
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run",
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            whole,
        )
    )


def _images(rng: random.Random, server: Server) -> tuple[int, str]:
    """Images as base64."""
    text = base64.b64encode(_bomb(rng)).decode()
    key = rng.choice(("image", "mask", "depth", "control", "init_images"))
    body: dict[str, Any] = {"prompt": "ship", "steps": 2, key: [text] if key == "init_images" else text}
    if key != "image":
        body["image"] = base64.b64encode(_bomb(rng)).decode()
    return _post(server, rng.choice(PATHS), json.dumps(body).encode())


def _multipart(rng: random.Random, server: Server) -> tuple[int, str]:
    """Forms with files, too many fields, or broken boundaries."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{rng.choice(KEYS)}"{rng.choice(("", "; filename=../../x.png"))}\r\n\r\n'.encode()
        + rng.choice((b"ship", b"2", _bomb(rng)))
        + b"\r\n"
        for _ in range(rng.choice((1, 2, 3, 100)))
    ]
    content = b"".join(parts) + rng.choice((b"--x--\r\n", b"", b"--x"))
    kind = rng.choice(
        ("multipart/form-data; boundary=x", "multipart/form-data; boundary=", "multipart/form-data; boundary=y")
    )
    return _post(server, rng.choice(("/v1/images/edits", "/v1/images/variations")), content, {"Content-Type": kind})


def _raw(rng: random.Random, server: Server) -> tuple[int, str]:
    """Requests that no client would send."""
    path = rng.choice(
        ("/page/../app.py", "/page/..%2f..%2fapp.py", "/files/../../etc/passwd-0.png", "//etc/passwd", "/api/drawings/%00", "/%ff",
         "/page/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/files/x-0.png", "/v1/models/" + "a" * 5000, "/static-offline-docs/../core.py")
    )  # fmt: skip
    head = rng.choice(
        ("Host: localhost", "Host: evil.example", "Host: a\r\nHost: b", "Content-Length: -1\r\nHost: localhost", "X: " + "a" * 70_000,
         "Host: localhost\r\nTransfer-Encoding: chunked", "Host: localhost\r\nContent-Length: 99999999999999999999")
    )  # fmt: skip
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as raw:
        method = rng.choice(("GET", "POST", "DELETE", "PUT", "OPTIONS", "FOO"))
        raw.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode())
        raw.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := raw.recv(65536):
                answer += part
        except OSError:
            pass
    if b"root:" in answer:
        raise RuntimeError(f"{path} leads to another file")
    words = answer.split(None, 2)
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), answer.decode("latin-1")
