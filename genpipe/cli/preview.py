"""`--preview PATH`: a small image of the current step on the disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from genpipe.files import atomic_write
from genpipe.images import check_suffix, encode_image, grid
from genpipe.imprint import SOURCE, TRAINED

if TYPE_CHECKING:
    from genpipe.pipeline.progress import Progress


class Preview:
    """Keep the images of a batch, as they are after the latest step, side by side in one file.

    Whoever reads the file sees one step or the next, never a half of each.

    Raises:
        ValueError: the file has no suffix of an image, or its folder does not exist.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        check_suffix(self._path)
        if not self._path.parent.is_dir():
            raise ValueError(f"--preview {path} is in a folder that does not exist: make it first")

    def __call__(self, progress: "Progress") -> None:
        """Write the file: what `Pipeline.__call__` calls after a step."""
        sheet = grid(progress.preview())
        sheet.info[SOURCE] = TRAINED
        data = encode_image(sheet, self._path.suffix)
        with atomic_write(self._path) as part:
            part.write_bytes(data)
