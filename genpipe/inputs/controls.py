"""Images of a request to control with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genpipe.inputs.images import InputImage
from genpipe.inputs.texts import NUMBER
from genpipe.messages import quoted

MAX_SCALE = 10.0
# What may be taken from an image to control with; see `genpipe.pipeline.preprocessors`.
PREPROCESSORS = ("canny", "edges", "lines", "tile")


@dataclass(frozen=True)
class Control:
    """An image that a control model is shown, how strongly it acts, and over which part of the schedule.

    Attributes:
        image: known by its content.
        scale: 1 is as the model was trained.
        start, end: shares of the schedule, 0 … 1, between which it acts.
        preprocessor: what is first taken from the image, one of `PREPROCESSORS`; None shows it as it is.
    """

    image: InputImage
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    preprocessor: str | None = None

    @classmethod
    def of(cls, source: Any) -> "Control":
        """Make one of a file, "FILE[:PREPROCESSOR][:SCALE[:START[:END]]]", a PIL image, what `to_dict` gave, or a
        dictionary of an image and other attributes.

        Raises:
            ValueError: it is none of these, the file is not there or has changed since, or a value is out of its range.
        """
        if isinstance(source, cls):
            return source
        given: dict[str, Any] = {"image": source}
        if isinstance(source, str):
            given = cls._said(source)
        elif isinstance(source, Mapping):
            given = {name: value for name, value in source.items() if name not in ("path", "sha256")}
            given.setdefault("image", {name: source[name] for name in ("path", "sha256") if name in source})
            if unknown := sorted(map(str, given.keys() - {one.name for one in dataclasses.fields(cls)})):
                raise ValueError(f"control has no {quoted(unknown[0])}: it has image, scale, start, end, preprocessor")
        for name, high in (("scale", MAX_SCALE), ("start", 1.0), ("end", 1.0)):
            if name in given:
                given[name] = _number(f"the {name} of a control image", given[name], high)
        if given.get("preprocessor") not in (None, *PREPROCESSORS):
            words = ", ".join(PREPROCESSORS)
            raise ValueError(f"control takes {words} from an image, not {quoted(given['preprocessor'])}")
        made = cls(**{**given, "image": InputImage.of("control", given["image"])})
        if made.start >= made.end:
            raise ValueError(
                f"a control image acts from {made.start:g} to {made.end:g}, which is never: start below end"
            )
        return made

    @staticmethod
    def _said(text: str) -> dict[str, Any]:
        """What a text says: numbers at its end, and before them the name of a preprocessor."""
        parts = text.split(":")
        numbers: list[float] = []
        while len(parts) > 1 and len(numbers) < 3 and NUMBER.fullmatch(parts[-1].strip()):
            numbers.insert(0, float(parts.pop()))
        given: dict[str, Any] = dict(zip(("scale", "start", "end"), numbers, strict=False))
        if len(parts) > 1 and parts[-1].strip() in PREPROCESSORS:
            given["preprocessor"] = parts.pop().strip()
        return {"image": ":".join(parts), **given}

    def to_dict(self) -> dict[str, Any]:
        """Give what identifies it, ready for JSON."""
        others = {name: getattr(self, name) for name in ("scale", "start", "end", "preprocessor")}
        return {**self.image.to_dict(), **others}


@dataclass(frozen=True)
class ControlList:
    """The kind of a field that holds a tuple of `Control`; see `genpipe.fields.Kind`."""

    metavar: str = "FILE[:X]"

    def check(self, name: str, value: Any) -> tuple[Control, ...]:
        """Give the control images, their contents hashed; one alone stands for a list of one."""
        return tuple(Control.of(one) for one in (value if isinstance(value, tuple | list) else [value]))

    def read(self, name: str, text: str) -> tuple[Control, ...]:
        """Give the control images of a text, with commas between them."""
        return self.check(name, [part.strip() for part in text.split(",") if part.strip()])

    def write(self, value: Any) -> str:
        """Give the text that `read` reads the control images from."""
        return ",".join(
            f"{one.image.path}{f':{one.preprocessor}' if one.preprocessor else ''}:{one.scale:g}:{one.start:g}:{one.end:g}"
            for one in value
        )


def _number(name: str, value: Any, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise ValueError(f"{name} must be a number from 0 to {high:g}, not {quoted(value)}")
    return float(value)
