"""Images to files: encoded, hashed and written by threads, beside the networks."""

import hashlib
import io
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from genpipe.images import Picture, Sign, encode_image
from genpipe.imprint import SOURCE, saving_options
from genpipe.workers.messages import THUMBNAIL, Drawn, Task, thumbnail_path
from genpipe.workers.storage import Storage

# A disk is slow to say that it holds one file, and about as slow for many at a time.
THREADS = 16


class Written(NamedTuple):
    """An image on the disk, and the seconds that encoding and writing it took."""

    drawn: Drawn
    encode: float
    write: float


class Writer:
    """Threads that write images, each with a small copy where it is large."""

    def __init__(self, storage: Storage, *, sign: Sign | None = None) -> None:
        self._storage, self._sign = storage, sign
        self._threads = ThreadPoolExecutor(THREADS, "write")

    def submit(self, task: Task, image: Picture, detail: dict[str, Any] | None) -> Future[Written]:
        """Begin to write an image, with what the judge said; the future raises OSError where that cannot be."""
        return self._threads.submit(self._write, task, image, detail)

    def _write(self, task: Task, image: Picture, detail: dict[str, Any] | None) -> Written:
        started = time.perf_counter()
        data = encode_image(image, Path(task.path).suffix, sign=self._sign)
        small = _small_copy(image) if max(image.size) > THUMBNAIL else None
        digest = hashlib.sha256(data).hexdigest()
        encoded = time.perf_counter()
        if small is not None:  # nothing is lost with it
            self._storage.write(thumbnail_path(task.id), small, durable=False)
        self._storage.write(task.path, data)
        return Written((task.number, len(data), digest, detail), encoded - started, time.perf_counter() - encoded)


def _small_copy(image: Image.Image) -> bytes:
    """The bytes of a JPEG of the size that galleries show."""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    data = io.BytesIO()
    source = saving_options({key: image.info[key] for key in (SOURCE,) if key in image.info}, "JPEG")
    image.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0).save(data, "JPEG", quality=85, **source)
    return data.getvalue()
