"""An image to its file, with a small copy where it is large."""

import hashlib
import io
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from genpipe.images import Sign, encode_image
from genpipe.imprint import SOURCE, saving_options
from genpipe.workers.messages import THUMBNAIL, thumbnail_path
from genpipe.workers.storage import Storage


class Written(NamedTuple):
    """A file on the disk: its bytes, its SHA-256 in hex, and the seconds that encoding and writing it took."""

    size: int
    sha256: str
    encode: float
    write: float


def write_image(
    storage: Storage,
    identifier: str,
    path: str,
    image: Image.Image,
    sign: Sign | None = None,
    *,
    turn: AbstractContextManager[Any] | None = None,
) -> Written:
    """Encode an image and write it.

    Args:
        identifier: by which its small copy is named.
        path: below the storage's root.
        sign: signs the file, see `genpipe.signing.Signer`.
        turn: held while it is encoded.

    Raises:
        OSError: a file cannot be written.
    """
    with turn or nullcontext():
        started = time.perf_counter()
        data = encode_image(image, Path(path).suffix, sign=sign)
        digest = hashlib.sha256(data).hexdigest()
        small = _small_copy(image) if max(image.size) > THUMBNAIL else None
        encoded = time.perf_counter()
    if small is not None:  # first: what is left of it by a kill belongs to an image that is drawn again
        storage.write(thumbnail_path(identifier), small, durable=False)
    storage.write(path, data)
    return Written(len(data), digest, encoded - started, time.perf_counter() - encoded)


def _small_copy(image: Image.Image) -> bytes:
    """The bytes of a JPEG of the size that galleries show."""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    data = io.BytesIO()
    source = saving_options({key: image.info[key] for key in (SOURCE,) if key in image.info}, "JPEG")
    image.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0).save(data, "JPEG", quality=85, **source)
    return data.getvalue()
