"""PNG files of RGB images, written fast: the filter in numpy, the compression by ISA-L where it is installed.

Networks' images look like photographs, whose noise has no repetitions to look for: what counts is the filter, and after it
the entropy code. So the search for repetitions is cut short, and the files are about as small as Pillow's.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Filters of the PNG specification, section 9.2, by number.
_AVERAGE, _PAETH = 3, 4
# Rows that decide on the filter of all.
_SAMPLED = 8


def encode_png(levels: Levels, texts: Mapping[str, str] | None = None) -> bytes:
    """Give the bytes of a PNG file.

    Args:
        levels: (H, W, 3), 8 bits, RGB.
        texts: of the file, by their Latin-1 keys; stored as iTXt, which holds Unicode.
    """
    height, width, _ = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    parts = [_SIGNATURE, *_chunk(b"IHDR", header)]
    for key, text in (texts or {}).items():
        # Neither compressed, nor in a named language, nor with a translated key.
        parts += _chunk(b"iTXt", key.encode("latin-1") + b"\0" * 5 + text.encode("utf-8", "replace"))
    parts += _chunk(b"IDAT", _deflate(_filtered(levels).data.cast("B")))
    parts += _chunk(b"IEND", b"")
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", _crc32(data, _crc32(kind)))


def _filtered(levels: Levels) -> Levels:
    """The rows (H, 1 + 3 W), each with the number of its filter first; the filter is that which leaves the least."""
    height, width, _ = levels.shape
    padded = np.zeros((height + 1, 3 * width + 3), np.uint8)  # what lies above and to the left is black
    padded[1:, 3:] = levels.reshape(height, 3 * width)
    stride = max(1, height // _SAMPLED)
    sample = slice(stride // 2, None, stride)
    number = min(_PREDICTIONS, key=lambda each: _entropy(_residual(padded, _PREDICTIONS[each], sample)))
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = number
    _residual(padded, _PREDICTIONS[number], slice(None), rows[:, 1:])
    return rows


def _residual(
    padded: Levels,
    predict: Callable[[Levels, Levels, Levels], Levels],
    chosen: slice,
    out: Levels | None = None,
) -> Levels:
    """What a prediction leaves of the chosen rows."""
    rows, above = padded[1:][chosen], padded[:-1][chosen]
    return np.subtract(rows[:, 3:], predict(rows[:, :-3], above[:, 3:], above[:, :-3]), out=out)


def _entropy(levels: Levels) -> float:
    """Bits per byte that a code for single bytes needs at least."""
    shares = np.bincount(levels.ravel(), minlength=256) / levels.size
    return -float(np.sum(shares * np.log2(shares, where=shares > 0, out=np.zeros(256))))


def _average(left: Levels, above: Levels, corner: Levels) -> Levels:
    mean = left ^ above
    mean >>= 1
    mean += left & above  # (left + above) // 2, without its carry
    return mean


def _paeth(left: Levels, above: Levels, corner: Levels) -> Levels:
    """Whichever of the three is nearest to left + above - corner; of equals the first."""
    from_left = np.maximum(above, corner) - np.minimum(above, corner)
    from_above = np.maximum(left, corner) - np.minimum(left, corner)
    nearest = np.where(from_left <= from_above, left, above)
    # From the corner it is as far as from both others together, unless the corner lies between them.
    between = (above > corner) != (left > corner)
    apart = np.maximum(from_left, from_above) - np.minimum(from_left, from_above)
    np.copyto(nearest, corner, where=between & (apart < np.minimum(from_left, from_above)))
    return nearest


_PREDICTIONS = {_AVERAGE: _average, _PAETH: _paeth}


def _zlib_deflate(rows: bytes | memoryview) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return compressor.compress(rows) + compressor.flush()


def _deflating() -> tuple[Callable[[memoryview], bytes], Callable[..., int]]:
    """Compression and CRC-32: ISA-L's, which are several times faster, or zlib's."""
    try:
        from isal import igzip_lib, isal_zlib  # pyright: ignore[reportMissingImports]
    except ImportError:
        return _zlib_deflate, zlib.crc32
    # Looking back no further than 2³ bytes is faster, and smaller: in photographs what repeats further away does so by
    # chance, and rows of drawings are further apart than any of these windows.
    deflate = partial(
        igzip_lib.compress, level=1, flag=igzip_lib.COMP_ZLIB, hist_bits=3, mem_level=igzip_lib.MEM_LEVEL_EXTRA_LARGE
    )
    return deflate, isal_zlib.crc32


_deflate, _crc32 = _deflating()
