"""One result of a run: an image that is finished, or the reason why it failed."""

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from genpipe.images import open_image
from genpipe.render.journal import Entry
from genpipe.render.recorded import recorded_request
from genpipe.request import Request


class Rendered:
    """An image that is finished, or that failed.

    Attributes:
        id: hash of all that determines it, in hex.
        line: the line of the input that asked for it, from 1.
        path: of its file; None where it is kept in memory or failed.
        score: what the judge said; None where it was not asked.
        error: why it failed; None where it did not.
    """

    def __init__(
        self,
        entry: Entry,
        settings: dict[str, Any],
        *,
        path: str | None = None,
        read: Callable[[], bytes] | None = None,
        detail: dict[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        self.id, self.line, self.path, self.error = entry.id.hex(), entry.line, path, error
        self.score = None if detail is None else {"total": detail["total"], **detail["score"]}
        self._entry, self._settings, self._read = entry, settings, read
        self._seed = entry.seed if detail is None else detail["seed"]

    @property
    def request(self) -> Request:
        """The request that was drawn; of several candidates, the best."""
        return recorded_request(self._settings, self._entry.prompt, self._seed)

    @property
    def extra(self) -> dict[str, Any]:
        """The row's other fields."""
        return self._entry.carried

    @property
    def image(self) -> Image.Image:
        """The image.

        Raises:
            ValueError: it failed.
            OSError: its file cannot be read.
        """
        if self._read is None:
            raise ValueError(f"the image of line {self.line} failed: {self.error}")
        image = open_image(io.BytesIO(self._read()))
        image.load()
        return image

    def __repr__(self) -> str:
        return f"Rendered({self._entry.prompt!r:.60}, line={self.line}, path={self.path!r}, error={self.error!r})"
