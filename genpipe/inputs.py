"""What a request may carry beside words: images and LoRAs, each known by its content. Imports no torch."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from genpipe.checks import check_file_name
from genpipe.messages import quoted

if TYPE_CHECKING:
    from PIL import Image

MAX_STRENGTH = 100.0  # of a LoRA
MAX_SCALE = 10.0  # of a control image
# What may be taken from an image to control with; see `genpipe.pipeline.preprocessors`.
PREPROCESSORS = ("canny", "edges", "lines", "tile")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class InputImage:
    """An image that a request carries. Two of the same content are equal, wherever they lie.

    Attributes:
        sha256: of the file's bytes, or of the size, mode and pixels of an image that is in memory, in hex.
        path: the file's full path; None for an image in memory.
        held: the image in memory.
    """

    sha256: str
    path: str | None = dataclasses.field(default=None, compare=False, repr=False)
    held: "Image.Image | None" = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, name: str, source: Any) -> "InputImage":
        """Make an input of a file, a PIL image, or what `to_dict` gave.

        Args:
            name: of the setting, for errors.
            source: a path, a PIL image, an `InputImage`, or {"path", "sha256"}.

        Raises:
            ValueError: it is none of these, the file is not there or cannot be read, or it has changed since.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            return cls._recorded(name, source)
        if isinstance(source, str | Path) and str(source):
            path = Path(source).expanduser().absolute()
            return cls(_file_hash(name, path), str(path))
        if not isinstance(source, str | Path) and hasattr(source, "tobytes") and hasattr(source, "mode"):
            data = f"{source.mode} {source.size} ".encode() + source.tobytes()
            return cls(hashlib.sha256(data).hexdigest(), held=source)
        raise ValueError(f"{name} must be an image file or a PIL image, not {quoted(source)}")

    @classmethod
    def _recorded(cls, name: str, made: Mapping[str, Any]) -> "InputImage":
        path, digest = made.get("path"), made.get("sha256")
        if not isinstance(digest, str):
            raise ValueError(f"{name} must be an image file or a PIL image, not {quoted(dict(made))}")
        if not isinstance(path, str):
            raise ValueError(f"{name} was given from memory (sha256 {digest[:12]}…): give its file with --{name}")
        found = _file_hash(name, Path(path))
        if found != digest:
            raise ValueError(
                f"{name} {quoted(path)} has changed since (sha256 {found[:12]}…, it was {digest[:12]}…): "
                f"restore it, or give another with --{name}"
            )
        return cls(digest, path)

    def to_dict(self) -> dict[str, Any]:
        """Give what identifies it, ready for JSON."""
        return {"path": self.path, "sha256": self.sha256}

    def open(self) -> "Image.Image":
        """Read the image upright, as 8-bit RGB, or RGBA where it is transparent.

        Raises:
            ValueError: not an image, damaged, or one of too many pixels.
            OSError: the file cannot be read.
        """
        from genpipe.images import upright

        return upright(self.held if self.held is not None else str(self.path))


@dataclass(frozen=True)
class Lora:
    """A file of changes to a model's weights, and how strongly they apply. Equal content and strength are equal.

    Attributes:
        sha256: of the file's bytes, in hex.
        strength: 1 is as it was trained.
        path: the file's full path.
        text_strength: of the text encoders' part; None is `strength`.
    """

    sha256: str
    strength: float
    path: str = dataclasses.field(compare=False, repr=False)
    text_strength: float | None = None

    @classmethod
    def of(cls, source: Any) -> "Lora":
        """Make one of "FILE", "FILE:STRENGTH" or "FILE:TEXT_STRENGTH:STRENGTH", a path, a pair of path and strength, or what `to_dict` gave.

        Raises:
            ValueError: it is none of these, the file is not there or has changed since, or the strength is no number.
        """
        if isinstance(source, cls):
            return source
        text, digest = None, None
        if isinstance(source, Mapping) and isinstance(source.get("path"), str):
            path, strength, digest = source["path"], source.get("strength", 1.0), source.get("sha256")
            text = source.get("text_strength")
        elif isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[0], str | Path):
            path, strength = source
        elif isinstance(source, str | Path) and str(source):
            path, strength, text = _with_strengths(str(source))
        else:
            raise ValueError(f"loras must be files, each as FILE or FILE:STRENGTH, not {quoted(source)}")
        for value in (strength, *([] if text is None else [text])):
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_STRENGTH:
                raise ValueError(
                    f"the strength of LoRA {quoted(Path(path))} must be a number from -{MAX_STRENGTH:g} to "
                    f"{MAX_STRENGTH:g}, not {quoted(value)}: 1 is usual"
                )
        full = Path(path).expanduser().absolute()
        found = _file_hash("LoRA", full)
        if digest is not None and found != digest:
            raise ValueError(
                f"LoRA {quoted(full)} has changed since (sha256 {found[:12]}…, it was {str(digest)[:12]}…)"
            )
        return cls(found, float(strength), str(full), None if text in (None, strength) else float(text))

    def to_dict(self) -> dict[str, Any]:
        """Give what identifies it, ready for JSON."""
        own = {} if self.text_strength is None else {"text_strength": self.text_strength}
        return {"path": self.path, "sha256": self.sha256, "strength": self.strength, **own}

    def __str__(self) -> str:
        text = "" if self.text_strength is None else f":{self.text_strength:g}"
        return f"{self.path}{text}:{self.strength:g}"


def _with_strengths(text: str) -> tuple[str, Any, Any]:
    """What "FILE", "FILE:BOTH" or "FILE:TEXT:UNET" say: a path, the strength, and that of the text encoders."""
    name, colon, number = text.rpartition(":")
    if not colon:
        return text, 1.0, None
    if not _NUMBER.fullmatch(number.strip()):
        # A colon may be of the file's name.
        wrong = not Path(text).expanduser().exists() and Path(name).expanduser().is_file()
        return (name, number, None) if wrong else (text, 1.0, None)
    first, colon, before = name.rpartition(":")
    if colon and _NUMBER.fullmatch(before.strip()):
        return first, float(number), float(before)
    return name, float(number), None


@dataclass(frozen=True)
class LoraList:
    """The kind of a field that holds a tuple of `Lora`; see `genpipe.fields.Kind`."""

    metavar: str = "FILE[:X]"

    def check(self, name: str, value: Any) -> tuple[Lora, ...]:
        """Give the LoRAs, their contents hashed; one alone stands for a list of one."""
        alone = isinstance(value, str | Path | Lora | Mapping)
        if not alone and not isinstance(value, tuple | list):
            raise ValueError(f"{name} must be a list of files, each as FILE or FILE:STRENGTH, not {quoted(value)}")
        loras = tuple(Lora.of(one) for one in ([value] if alone else value))
        return tuple(one for one in loras if one.strength or one.text_strength)

    def read(self, name: str, text: str) -> tuple[Lora, ...]:
        """Give the LoRAs of a text, with commas between them."""
        return self.check(name, [part.strip() for part in text.split(",") if part.strip()])

    def write(self, value: Any) -> str:
        """Give the text that `read` reads the LoRAs from."""
        return ",".join(map(str, value))


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
        while len(parts) > 1 and len(numbers) < 3 and _NUMBER.fullmatch(parts[-1].strip()):
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


def _file_hash(name: str, path: Path) -> str:
    check_file_name(path)
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):  # a pipe or a device may never end
            raise ValueError(f"{name} {quoted(path)} is not a file: give one")
        return _hash_of(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise ValueError(f"{name} {quoted(path)} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=256)
def _hash_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class ImageInput:
    """The kind of a field that holds an `InputImage`; see `genpipe.fields.Kind`."""

    metavar: str = "FILE"

    def check(self, name: str, value: Any) -> InputImage:
        """Give the image as an `InputImage`, its content hashed."""
        return InputImage.of(name, value)

    def read(self, name: str, text: str) -> InputImage:
        """Give the image of a file's path."""
        return InputImage.of(name, text)

    def write(self, value: Any) -> str:
        """Give the path of the image's file."""
        return str(value.path)
