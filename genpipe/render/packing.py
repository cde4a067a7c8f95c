"""Batches: which images go through the networks together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from genpipe.fields import defaults_of, settings_of
from genpipe.inputs import ImageInput
from genpipe.render.journal import PENDING, Entry, Journal
from genpipe.request import SHARED, Request

# Fields that hold an image; all of a batch have one, or none.
IMAGES = tuple(name for name, described in settings_of(Request).items() if isinstance(described.kind, ImageInput))


@dataclass
class Batch:
    """Images that agree in all that a batch must agree in.

    Attributes:
        entries: at least one.
        shape: what they share, see `shape_of`.
        deaths: how many workers have died over it.
        waiting: how many images of this shape were to be drawn when it was made, its own among them; at least.
    """

    entries: list[Entry]
    shape: str
    deaths: int = 0
    waiting: int = 0


class Packer:
    """Packs a journal's pending images by shape, so that it seldom changes, with equal prompts next to each other.

    It looks at some thousands at a time; images that do not fill a batch wait for the next ones of their shape.

    Args:
        size: gives how many images fill a batch, of the shape and how many of it are left; asked for each batch anew.
        distilled: whether the network takes the scale of guidance as an input, so that a batch may mix all of them.
        window: how many images it looks at together.
    """

    def __init__(
        self, journal: Journal, size: Callable[[str, int], int], *, distilled: bool = False, window: int = 4096
    ) -> None:
        self.journal, self.size, self.distilled, self.window = journal, size, distilled, window
        self._returned: list[Batch] = []
        self._shapes: dict[int, str] = {}
        self._batches = self._pack()

    def next(self) -> Batch | None:
        """Give the next batch; None when all others are being drawn or have been."""
        return self._returned.pop() if self._returned else next(self._batches, None)

    def give_back(self, batch: Batch) -> None:
        """Take back a batch that was not drawn."""
        self._returned.append(batch)

    def _pack(self) -> Iterator[Batch]:
        waiting: dict[str, list[Entry]] = {}
        for window in self.journal.windows(self.window, state=PENDING):
            for entry in window:
                shape = self._shapes.get(entry.settings) or self._shape(entry.settings)
                waiting.setdefault(shape, []).append(entry)
            keep = sum(map(len, waiting.values())) < 2 * self.window and len(window) == self.window
            yield from self._fill(waiting, keep)
        yield from self._fill(waiting, False)

    def _fill(self, waiting: dict[str, list[Entry]], keep: bool) -> Iterator[Batch]:
        """Make full batches; and of what is left batches that are not full, unless it is kept for the next window."""
        for shape in sorted(waiting):
            entries = waiting.pop(shape)
            entries.sort(key=lambda entry: (entry.prompt, entry.settings))
            start = 0
            while start < len(entries):
                size = self.size(shape, len(entries) - start)
                if keep and len(entries) - start < size:
                    waiting[shape] = entries[start:]
                    break
                yield Batch(entries[start : start + size], shape, waiting=len(entries) - start)
                start += size

    def _shape(self, number: int) -> str:
        if len(self._shapes) > 10_000:
            self._shapes.clear()
        self._shapes[number] = shape_of(self.journal.settings(number), self.distilled)
        return self._shapes[number]


def shape_of(settings: dict[str, Any], distilled: bool = False) -> str:
    """Write what the images of one batch must share as a text that sorts by size first."""
    settings = {**defaults_of(Request), **settings}  # a folder of an older version lacks what came since
    shared = {name: settings[name] for name in SHARED} | {"guided": distilled or settings["guidance_scale"] > 1}
    shared |= {name: True for name in IMAGES if settings[name] is not None}
    shared["control"] = [(one["start"], one["end"]) for one in settings["control"]] or None
    size = f"{shared.pop('height'):05}x{shared.pop('width'):05}"
    return " ".join([size, *(f"{key}={value}" for key, value in sorted(shared.items()) if value is not None)])


def pixels_of(shape: str) -> int:
    """Read how many pixels an image of a shape has, which `shape_of` wrote."""
    height, width = map(int, shape.split(" ")[0].split("x"))
    return height * width
