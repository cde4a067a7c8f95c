"""Where the images of a command go, and what they are called."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from genpipe.files import sweep
from genpipe.images import Sign, check_suffix, save_image, save_new

_PLACE = re.compile(r"\{seed\}|\{index\}|%(\d{0,2})d")


class Output:
    """The places of some images, refused when this is made if they cannot be written.

    Args:
        output: what --output says: a path, in which {seed}, {index} and %03d (from 0) name several.
        outdir: what --outdir says, made if missing.
        stem: names images that `output` does not, and then never the name of a file that is there.
        seeds: of the images.
        sign: signs them; None for none.

    Raises:
        ValueError: `output` names one file for several images, is a folder, or has no suffix of an image.
        OSError: the folder cannot be written into.
    """

    def __init__(
        self, output: str | None, outdir: str | None, stem: str, seeds: Sequence[int], *, sign: Sign | None = None
    ) -> None:
        self._output, self._folder, self._stem, self._sign = output, Path(outdir or "."), stem, sign
        if outdir is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._paths: list[Path] = []
        if output is not None:
            self._paths = [self._folder / _named(output, seed, index) for index, seed in enumerate(seeds)]
            if len(set(self._paths)) < len(seeds):
                start, suffix = os.path.splitext(output)
                fix = f"try {start}-{{index}}{suffix}"
                raise ValueError(f"--output {output} names one file for {len(seeds)} images: {fix}")
            for path in self._paths:
                _check(path)
        for parent in {path.parent for path in self._paths} or {self._folder}:
            sweep(parent)
            try:
                tempfile.TemporaryFile(dir=parent).close()
            except OSError as error:
                raise OSError(error.errno, f"cannot write into this folder: {error.strerror}", str(parent)) from error

    def save(self, image: Image.Image, index: int) -> Path:
        """Save one of the images, and give its path."""
        if not self._paths:
            return save_new(image, self._folder, self._stem, sign=self._sign)
        save_image(image, self._paths[index], sign=self._sign)
        return self._paths[index]

    def save_beside(self, image: Image.Image, word: str) -> Path:
        """Save an image of all of them, called after this word, and give its path."""
        if self._output is None:
            return save_new(image, self._folder, f"{self._stem}-{word}", sign=self._sign)
        start, suffix = os.path.splitext(self._output)
        name = _PLACE.sub(word, self._output) if _PLACE.search(self._output) else f"{start}-{word}{suffix}"
        save_image(image, self._folder / name, sign=self._sign)
        return self._folder / name


def _check(path: Path) -> None:
    check_suffix(path)
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder: save into it with --outdir {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path} is in a folder that does not exist: make it, or use --outdir")


def _named(pattern: str, seed: int, index: int) -> str:
    values = {"{seed}": str(seed), "{index}": str(index)}
    return _PLACE.sub(lambda place: values.get(place[0]) or f"{index:{place[1]}d}", pattern)
