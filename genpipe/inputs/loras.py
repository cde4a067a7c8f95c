"""LoRAs of a request, each known by its content."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genpipe.inputs.images import file_hash
from genpipe.inputs.texts import NUMBER
from genpipe.messages import quoted

MAX_STRENGTH = 100.0


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
        found = file_hash("LoRA", full)
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
    if not NUMBER.fullmatch(number.strip()):
        # A colon may be of the file's name.
        wrong = not Path(text).expanduser().exists() and Path(name).expanduser().is_file()
        return (name, number, None) if wrong else (text, 1.0, None)
    first, colon, before = name.rpartition(":")
    if colon and NUMBER.fullmatch(before.strip()):
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
