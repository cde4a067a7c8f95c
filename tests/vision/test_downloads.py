"""Weights by URL, from a server of the tests' own: whole, cut, and talking nonsense."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from genpipe.cli import main
from genpipe.vision.downloads import drop, fetch
from genpipe.vision.lenet import LeNet5
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.weights import Classifier, load_classifier, save_classifier


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a server that gives each answer in turn, the last one for ever; returns the start of its URLs."""
    sockets = []

    def start(*answers: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)
        left = list(answers)

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # it was closed: the test is over
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(left.pop(0) if len(left) > 1 else left[0])

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in sockets:
        server.close()


def answer(data: bytes, length: int | None = None) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(data) if length is None else length) + data


def weights(folder: Path, *classes: str) -> bytes:
    torch.manual_seed(0)
    settings = Preprocess(32, 32, (0.5,), (0.5,))
    save_classifier(Classifier(LeNet5(len(classes)), "lenet5", classes, settings), folder / "made.safetensors")
    return (folder / "made.safetensors").read_bytes()


def test_a_file_is_fetched_once_and_kept_by_its_url(serve: Callable[..., str], hub: Path, tmp_path: Path) -> None:
    animals, things = answer(weights(tmp_path, "cat", "dog")), answer(weights(tmp_path, "ship", "car"))
    first = serve(animals, b"")
    assert load_classifier(f"{first}/a/w.safetensors").classes == ("cat", "dog")
    assert load_classifier(f"{first}/a/w.safetensors").classes == ("cat", "dog")  # the server has nothing more to give
    # Another URL that ends alike is another file.
    assert load_classifier(f"{serve(things)}/a/w.safetensors").classes == ("ship", "car")
    assert [path.name for path in hub.rglob("*") if path.is_file()] == ["w.safetensors"] * 2


def test_a_file_with_its_hash_in_its_name_is_kept_as_torchvision_does(
    serve: Callable[..., str], hub: Path, tmp_path: Path
) -> None:
    data = weights(tmp_path, "cat", "dog")
    name = f"w-{hashlib.sha256(data).hexdigest()[:8]}.safetensors"
    hub.mkdir(parents=True)
    (hub / name).write_bytes(data[:-1])  # damaged: it is fetched anew
    url = f"{serve(answer(data), b'')}/{name}"
    assert fetch(url) == fetch(url) == hub / name and (hub / name).read_bytes() == data
    with pytest.raises(ValueError, match=r"w-00000000.safetensors' gives has the SHA-256 .*, not 00000000 as its name"):
        fetch(f"{serve(answer(data))}/w-00000000.safetensors")
    assert [path.name for path in hub.iterdir()] == [name]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nabc", "3 of 900 bytes|IncompleteRead|3 bytes read"),
        (b"garbage garbage\r\n\r\n", "garbage"),
        (b"", "without response|closed"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc", "the server answers 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", "chunk|length"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "headers"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "IPv6|parse"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x.safetensors\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "redirects"),
    ],
)  # fmt: skip
def test_a_server_that_cuts_or_talks_nonsense_is_one_line(
    serve: Callable[..., str], hub: Path, given: bytes, says: str
) -> None:
    url = f"{serve(given)}/x.safetensors"
    with pytest.raises(OSError, match=f"could not be fetched: .*({says})") as caught:
        fetch(url)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 and repr(url) in str(caught.value)
    assert not list(hub.rglob("*"))


def test_a_cut_file_does_not_stay(serve: Callable[..., str], hub: Path, tmp_path: Path) -> None:
    data = weights(tmp_path, "cat", "dog")
    unstated = b"HTTP/1.1 200 OK\r\n\r\n" + data[: len(data) // 2]  # a length that nobody knows
    url = f"{serve(answer(data[:500], len(data)), unstated, answer(data))}/w.safetensors"
    with pytest.raises(OSError, match="could not be fetched"):
        load_classifier(url)
    with pytest.raises(ValueError, match="is truncated or not safetensors"):
        load_classifier(url)
    assert not [path for path in hub.rglob("*") if path.is_file()]
    assert load_classifier(url).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1", "http://a b/x.safetensors", "http://\n/x.safetensors", "https://127.0.0.1:99999999/x.safetensors",
        "http://127.0.0.1:9/x.safetensors", "http://127.0.0.1/", "http://127.0.0.1/..", "http://127.0.0.1/a%00b",
        "file:///nonexistent/%00x.safetensors", "file:///nonexistent/x.safetensors", "file:///", "file://[",
        f"http://{'x' * 300}/x.safetensors", f"http://127.0.0.1/{'x' * 5000}.safetensors",
    ],
)  # fmt: skip
def test_a_url_that_gives_nothing_is_one_line(url: str) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        load_classifier(url)
    assert type(caught.value) in (ValueError, OSError, FileNotFoundError, IsADirectoryError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_of_ones_own_is_never_dropped(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"cut")
    for source in (path, str(path), path.as_uri()):
        with pytest.raises(ValueError, match="is truncated or not safetensors"):
            load_classifier(source)
        drop(source)
    assert path.exists()


def test_the_command_says_it_in_one_line(serve: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    assert (
        main(["classify", str(tmp_path / "x.png"), "--weights", f"{serve(b'junk')}/w.safetensors", "--device", "cpu"])
        == 1
    )
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and "could not be fetched" in captured.err
