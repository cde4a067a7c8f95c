"""Samples of command lines, of Python objects given to public functions, and of servers that talk nonsense."""

import argparse
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

import genpipe
from genpipe.cli.parser import COMMANDS
from genpipe.fields import settings_of
from genpipe.messages import quoted
from genpipe.metadata import read_metadata
from genpipe.pipeline import Pipeline
from genpipe.request import Request
from genpipe.spec import ModelSpec
from scripts.evaluate.fuzz.material import Instant, Material
from scripts.evaluate.fuzz.sandbox import Sample, command, function
from scripts.evaluate.fuzz.values import ODD, mutated, odd, word

# What each command needs to do its work quickly; odd options come on top.
_BASES: dict[str, list[str]] = {
    "generate": [
        "ship",
        "-m",
        "{checkpoint}",
        "--steps",
        "1",
        "--size",
        "16x16",
        "--seed",
        "1",
        "-q",
        "--dtype",
        "fp32",
    ],
    "render": ["missing.txt", "-o", "out"],
    "classify": ["{image}"],
    "train": ["missing", "-o", "out"],
    "vision": ["inspect", "{image}", "--weights", "{classifier}"],
    "info": [],
    "vocabulary": ["cat"],
}


def options_of(name: str) -> list[argparse.Action]:
    """List the options of a command, those of `vision`'s own commands among them."""
    parser = argparse.ArgumentParser()
    COMMANDS[name](parser)
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [each for inner in action.choices.values() for each in inner._actions]
    return actions


def arguments(rng: Random, material: Material, folder: Path) -> Sample:
    """A command line: known options with odd values, unknown ones, words too many, words cut and joined."""
    names = [name for name in _BASES if name in COMMANDS]
    name = rng.choice([*names, "generate", "generate"])
    files = {"checkpoint": material.checkpoint, "image": material.image, "classifier": material.classifier}
    given = [each.format(**files) if each.startswith("{") else each for each in _BASES[name]]
    options = options_of(name)
    for _ in range(rng.choice((1, 1, 2, 3))):
        option = rng.choice(options)
        more = [rng.choice(option.option_strings)] if option.option_strings else []
        if option.nargs != 0:
            more.append(word(rng))
        if rng.random() < 0.1:
            more = [word(rng)]
        if rng.random() < 0.15 and len(more) == 2:
            more = ["=".join(more)]
        at = rng.randrange(len(given) + 1) if rng.random() < 0.2 else len(given)
        given[at:at] = more
    if rng.random() < 0.1 and given:
        del given[rng.randrange(len(given))]
    line = given if name == "generate" and rng.random() < 0.5 else [name, *given]
    # Hundreds of images, or large ones, would be right and slow; Ray starts programs of its own.
    if name == "generate" and any(each in ("-n", "--n", "-b") or "num" in each or "batch" in each for each in line):
        line += ["-n", "2"]
    return command(" ".join(line)[:150], line)


class _Broken:
    def __repr__(self) -> str:
        raise KeyError("no name")


def objects(rng: Random, material: Material, folder: Path) -> Sample:
    """Python objects where public functions want others."""
    strange: list[Any] = [
        *(
            object(),
            _Broken(),
            b"ship",
            bytearray(b"x"),
            Path("a"),
            np.float32(3),
            np.int64(7),
            np.array([1, 2]),
            np.nan,
        ),
        *(
            torch.zeros(3),
            torch.device("cpu"),
            torch.float16,
            torch.int8,
            range(3),
            {1, 2},
            lambda: 1,
            int,
            1j,
            Ellipsis,
        ),
        *(
            Image.new("L", (2, 2)),
            (1, 2),
            iter([1]),
            Request("a", seed=1, steps=1, guidance_scale=1, height=8, width=8),
        ),
    ]
    value = rng.choice(strange) if rng.random() < 0.5 else odd(rng)
    said = f"{type(value).__name__} {quoted(value)}"
    which = rng.randrange(6)
    if which == 0:
        key = rng.choice(sorted(settings_of(Request)))
        whole = {"prompt": "a", "seed": 1, "steps": 1, "guidance_scale": 1.0, "height": 8, "width": 8}
        return function(f"Request.from_dict {key}={said}", lambda: Request.from_dict({**whole, key: value}))
    if which == 1:
        key = rng.choice(sorted(settings_of(ModelSpec)))
        return function(f"ModelSpec.from_dict {key}={said}", lambda: ModelSpec.from_dict({key: value}))
    if which == 2:
        keys = ("model", "device", "dtype", "revision", "variant", "tiny_vae", "low_memory", "int8")
        key = rng.choice(keys)
        given: dict[str, Any] = {"model": material.checkpoint, "device": "cpu", key: value}
        model = given.pop("model")
        return function(f"from_pretrained {key}={said}", lambda: Pipeline.from_pretrained(model, **given))
    if which == 3:
        key = rng.choice(("prompt", "n", "seed", "seeds", "steps", "guidance_scale", "height", "width", "sampler", "judge",
                          "negative_prompt", "clip_skip", "speed", "best_of", "guidance_rescale"))  # fmt: skip
        settings: dict[str, Any] = {"prompt": "a", "seed": 1, "steps": 1, "height": 16, "width": 16, "progress": False}
        settings[key] = value
        if key == "seeds":
            del settings["seed"]
        return function(
            f"generate {key}={said}", lambda: genpipe.generate(model=material.checkpoint, device="cpu", **settings)
        )
    if which == 4:
        source = value if rng.random() < 0.3 else [value, {"prompt": value}, {"prompt": "a", "seed": value}]
        engine = Instant()
        return function(f"render {said}", lambda: list(genpipe.render(source, out=folder, engine=engine, steps=1)))
    return function(f"read_metadata {said}", lambda: read_metadata(value))


def _answers(rng: Random, material: Material) -> bytes:
    body = material.classifier.read_bytes()
    sound = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    return rng.choice(
        (
            *(b"", b"garbage\r\n\r\n", b"HTTP/1.1", b"HTTP/1.1 200\r\n\r\n", b"HTTP/1.1 999 Odd\r\n\r\n"),
            *(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc",
                b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n",
            ),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + body,
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + body,
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 302 Found\r\nLocation: "
            + rng.choice((b"/x", b"", b"ftp://a/b", b"http://[", b"\xff"))
            + b"\r\n\r\n",
            b'HTTP/1.1 200 OK\r\nX-Repo-Commit: ../../x\r\nETag: "a"\r\nContent-Length: 2\r\n\r\n{}',
            b"HTTP/1.1 %d X\r\nX-Error-Code: %s\r\nContent-Length: 0\r\n\r\n"
            % (
                rng.choice((401, 403, 404, 416, 429, 500, 503)),
                rng.choice((b"RepoNotFound", b"GatedRepo", b"\x1b[2J")),
            ),
            sound[: rng.randrange(len(sound))],
            mutated(rng, sound[:300]) + sound[300:],
            sound,
        )
    )


@contextmanager
def _server(answer: bytes) -> Iterator[int]:
    """A server on this machine that gives one answer to whatever it is asked."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(2)
                    try:
                        connection.recv(4096)
                        connection.sendall(answer)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()


def urls(rng: Random, material: Material, folder: Path) -> Sample:
    """A URL of weights, or the hub itself, on a server that talks nonsense."""
    answer = _answers(rng, material)
    odd_url = rng.choice(
        ("", str(rng.choice(ODD)), "http://127.0.0.1:{port}/", "http://127.0.0.1:99999/x", "http://[::1/x")
    )
    url = odd_url if rng.random() < 0.2 else f"http://127.0.0.1:{{port}}/{rng.randrange(10**9)}.safetensors"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(material.images["PNG"])
    hub = rng.random() < 0.4

    def run() -> int:
        from huggingface_hub import constants

        from genpipe.cli import main

        with _server(answer) as port:
            if not hub:
                return main(["classify", str(folder / "x.png"), "--weights", url.replace("{port}", str(port))])
            constants.ENDPOINT = f"http://127.0.0.1:{port}"
            constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
            constants.HF_HUB_OFFLINE = False
            constants.HF_HUB_CACHE = str(folder / "hub")
            return main(["ship", "-m", "owner/name", "--seed", "1", "-q", "--outdir", os.fspath(folder)])

    return Sample(f"{'hub' if hub else url[:60]} answers {answer[:80]!r}", run)
