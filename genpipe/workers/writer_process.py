"""A process that writes images: `python -m genpipe.workers.writer_process`, spoken to over its standard input and output.

In: a line of JSON {"out", "sign"}; then for each image a line {"id", "path", "width", "height", "info"} and its pixels, 3
bytes each. Out, for each: a line with a `Written`, or with what an OSError says. When its input ends, so does the process.
It loads no torch.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from genpipe.images import Sign
from genpipe.workers.image_files import Written, write_image
from genpipe.workers.storage import open_storage


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
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
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
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            if self._opening is not None:
                self._process.stdin.write(self._opening)
                self._opening = None
            self._process.stdin.write(json.dumps(described).encode() + b"\n")
            self._process.stdin.write(image.tobytes())
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
    while line := given.readline():
        described = json.loads(line)
        size = (described["width"], described["height"])
        pixels = given.read(3 * size[0] * size[1])
        if len(pixels) < 3 * size[0] * size[1]:
            return
        image = Image.frombytes("RGB", size, pixels)
        image.info |= described["info"]
        try:
            answer: dict[str, Any] = {"written": write_image(storage, described["id"], described["path"], image, sign)}
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
