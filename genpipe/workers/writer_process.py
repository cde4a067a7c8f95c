"""A process that writes images: `python -m genpipe.workers.writer_process`, spoken to over its standard input and output.

In: a line of JSON {"out", "sign"}; then for each image a line {"id", "path", "width", "height", "info", "shared"} and its
pixels, 3 bytes each, if they do not lie in the memory that both processes share, whose file the first argument names. Out,
for each: a line with a `Written`, or with what an OSError says. When its input ends, so does the process. It loads no torch.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genpipe.images import Picture, Sign
from genpipe.workers.image_files import Written, write_image
from genpipe.workers.storage import open_storage

# Bytes of shared memory, of which those are real that are used: an image of 4096 x 4096 pixels.
SHARED = 3 << 24


class Gone(Exception):
    """The process has died."""


class WriterProcess:
    """A process that writes images, one at a time; of one thread at a time.

    Args:
        out: a folder, or an fsspec URL.
        sign: what the files are signed with.
    """

    def __init__(self, out: str, sign: str | None = None) -> None:
        root = str(Path(__file__).parents[2])  # the code that runs here
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        with _shared_file() as file:
            given = () if file is None else (file,)
            self._memory = None if file is None else mmap.mmap(file, SHARED)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                pass_fds=given,
            )
        self._opening: bytes | None = json.dumps({"out": out, "sign": sign}).encode() + b"\n"

    def write(self, identifier: str, path: str, image: Image.Image) -> Written:
        """Write an RGB image, as `write_image` does.

        Raises:
            OSError: a file cannot be written.
            Gone: the process has died.
        """
        info = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
        described = {"id": identifier, "path": path, "width": image.width, "height": image.height, "info": info}
        levels = np.ascontiguousarray(image.levels if isinstance(image, Picture) else image)
        described["shared"] = self._memory is not None and levels.nbytes <= SHARED
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            if self._opening is not None:
                self._process.stdin.write(self._opening)
                self._opening = None
            self._process.stdin.write(json.dumps(described).encode() + b"\n")
            if self._memory is not None and described["shared"]:
                self._memory[: levels.nbytes] = levels.data.cast("B")
            else:
                self._process.stdin.write(levels.data)
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            raise Gone from error
        if "written" in answer:
            return Written(*answer["written"])
        raise OSError(*answer["failed"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        if self._memory is not None:
            self._memory.close()


@contextmanager
def _shared_file() -> Iterator[int | None]:
    """Open a file in memory for the pixels: through a pipe, 64 KB at a time, a large image takes longer than its encoding.

    None where the system has no such files.
    """
    try:
        file = os.memfd_create("genpipe")
    except (AttributeError, OSError):
        yield None
        return
    try:
        os.ftruncate(file, SHARED)
        yield file
    finally:
        os.close(file)


def main() -> None:
    """Serve until the input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group; the coordinator says when to stop
    warnings.showwarning = _show_warning
    given = sys.stdin.buffer
    opening = given.readline()
    if not opening:
        return
    opened = json.loads(opening)
    storage, sign = open_storage(opened["out"]), _signer(opened["sign"])
    memory = mmap.mmap(int(sys.argv[1]), SHARED) if len(sys.argv) > 1 else b""
    while line := given.readline():
        described = json.loads(line)
        width, height = described["width"], described["height"]
        pixels = memory if described["shared"] else given.read(3 * width * height)
        if len(pixels) < 3 * width * height:
            return
        levels = np.frombuffer(pixels, np.uint8, 3 * width * height).reshape(height, width, 3)
        image = Picture.of_levels(levels)
        image.info |= described["info"]
        try:
            written = write_image(storage, described["id"], described["path"], image, sign)
            answer: dict[str, Any] = {"written": written}
        except OSError as error:
            answer = {"failed": [error.errno, error.strerror or str(error), error.filename]}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def _signer(path: str | None) -> Sign | None:
    if path is None:
        return None
    from genpipe.signing import Signer

    return Signer(path)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("genpipe: warning:", " ".join(str(message).split()), file=sys.stderr)


if __name__ == "__main__":
    main()
