"""Weights by URL: fetched once into the cache of torch's hub, checked, and dropped from it when they turn out bad."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

import torch

from genpipe.files import atomic_write
from genpipe.messages import one_line, quoted
from genpipe.progress import Progress

if TYPE_CHECKING:
    from requests import Response

SECONDS = 15.0  # without a byte, after which a server is given up
CHUNK = 2**20
# As torch's hub names files: eight digits or more of the file's SHA-256 before the suffix.
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


class _Failed(Exception):
    """Why a file could not be fetched, in a few words."""


def fetch(source: str | Path) -> Path:
    """Return the local file of a path or a URL (https://, http://, file://).

    A file from the web is kept in `checkpoints` of torch's hub cache: by its name alone where that holds the file's hash,
    as torchvision keeps it, else in a folder of its own for each URL. A copy whose hash is wrong is fetched anew.

    Raises:
        ValueError: a URL that names no file, or a file whose SHA-256 does not begin with the digits in its name
            (resnet50-0676ba61.pth).
        OSError: there is no such file, or it cannot be fetched whole.
    """
    if not _of_the_web(source):
        path = Path(source).expanduser()
        if isinstance(source, str) and source.lower().startswith("file://"):
            path = Path(url2pathname(_split(source).path))
        if "\0" in str(path):
            raise ValueError(f"{quoted(source)} names no file")
        if wrong := _wrong_hash(path):
            raise ValueError(f"{path} has {wrong}: fetch or rename it")
        return path
    url = str(source)
    path = _kept(url)
    if not path.is_file() or _wrong_hash(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(url, path)
            if wrong := _wrong_hash(path):
                raise ValueError(f"what {quoted(url)} gives has {wrong}")
        except (ValueError, OSError):
            drop(url)
            raise
    return path


def drop(source: str | Path) -> None:
    """Remove what is kept of a URL, so that it is fetched anew the next time; a file of one's own stays."""
    if _of_the_web(source):
        path = _kept(str(source))
        path.unlink(missing_ok=True)
        with suppress(OSError):  # others may be in its folder
            path.parent.rmdir()


def _of_the_web(source: str | Path) -> bool:
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{quoted(url)} is not a URL: {error}") from None


def _kept(url: str) -> Path:
    """Where the file of a URL is kept, whether it is there or not."""
    name = unquote(_split(url).path).rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name or len(name) > 200:
        raise ValueError(f"{quoted(url)} names no file: give the URL of a .safetensors file")
    folder = Path(torch.hub.get_dir(), "checkpoints")
    return folder / name if _HASH.search(name) else folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _download(url: str, path: Path) -> None:
    """Write what a URL gives to `path`, wholly or not at all.

    Raises:
        OSError: it cannot be fetched, or not all of it came; or the disk does not take it.
    """
    import requests

    try:
        try:
            # Without compression the length that the server states is that of the file.
            response = requests.get(url, stream=True, timeout=SECONDS, headers={"Accept-Encoding": "identity"})
        except (requests.RequestException, ValueError) as error:
            raise _Failed(_innermost(error)) from error
        with response, atomic_write(path) as part, part.open("wb") as file:
            for chunk in _chunks(response, path.name):
                file.write(chunk)
    except _Failed as error:
        raise OSError(f"{quoted(url)} could not be fetched: {one_line(str(error), 160)}") from error


def _chunks(response: "Response", name: str) -> Iterator[bytes]:
    """The bytes of a file, whose number is checked against what the server stated."""
    import requests

    if not response.ok:
        raise _Failed(f"the server answers {response.status_code} {response.reason}")
    stated = response.headers.get("Content-Length", "")
    length = int(stated) if stated.isdecimal() and len(stated) < 16 else None
    with Progress(length, unit="byte", label=name) as progress:
        try:
            for chunk in response.iter_content(CHUNK):
                yield chunk
                progress.update(len(chunk))
        except requests.RequestException as error:
            raise _Failed(_innermost(error)) from error
        if length is not None and progress.done != length:
            raise _Failed(f"{progress.done:,} of {length:,} bytes came")


def _innermost(error: BaseException) -> str:
    """What went wrong, without the errors that the libraries wrap it in."""
    if isinstance(error, UnicodeError):
        return "its answer is not text"
    inner = [getattr(error, "reason", None), *error.args]
    wrapped = next((each for each in inner if isinstance(each, BaseException)), None)
    return _innermost(wrapped) if wrapped is not None else str(error) or type(error).__name__


def _wrong_hash(path: Path) -> str:
    """What is wrong about the hash of a file whose name says another; "" where the name says none, or the right one."""
    match = _HASH.search(path.name)
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest() if match else ""
    if match is None or actual.startswith(match[1]):
        return ""
    return f"the SHA-256 {actual[:8]}…, not {match[1][:16]} as its name says"
