"""How to render."""

from dataclasses import dataclass, field
from typing import Any

from genpipe.images import FORMATS
from genpipe.messages import quoted
from genpipe.render.planning import SETTINGS
from genpipe.request import MAX_BEST_OF, MAX_PICTURES, Request

MAX_BATCH = 1024
JUDGE = "genpipe.judge:score"


@dataclass(frozen=True)
class Options:
    """How to render; what is None is left to the model.

    Attributes:
        model, revision, variant, dtype: as in `Pipeline.from_pretrained`.
        settings: of every row that does not say otherwise: steps, guidance_scale, width, ….
        n: pictures a row.
        seeds: each drawn for every row that names none; None derives a seed from what the row says.
        batch: pictures that go through the networks together; None finds out what is fast.
        format: "png", "jpg" or "webp", where a row's file name does not say.
        deterministic: bitwise the same pictures in any batch.
        best_of: pictures drawn for each that is kept, the one with the highest score.
        score: have the judge score each picture.
        judge: "module:function" of (picture, prompt), whose result has `total`, 0 … 1, and `to_dict()`.
        strict: stop at a row that cannot be drawn.
        verify: check the hashes of the pictures that are there, not only their sizes.
        force: go on in a folder that was made with other settings.
        retry_failed: draw again what failed before.

    Raises:
        ValueError: a value is out of its range.
    """

    model: str | None = None
    revision: str | None = None
    variant: str | None = None
    dtype: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    seeds: list[int] | None = None
    batch: int | None = None
    format: str = "png"
    deterministic: bool = False
    best_of: int = 1
    score: bool = False
    judge: str = JUDGE
    strict: bool = False
    verify: bool = False
    force: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.settings) - set(SETTINGS)):
            raise ValueError(f"render has no setting {', '.join(unknown)}: they are {', '.join(SETTINGS)}")
        if f".{self.format}" not in FORMATS:
            raise ValueError(f"format {quoted(self.format)} is not one: use png, jpg or webp")
        for name, high in (("n", MAX_PICTURES), ("best_of", MAX_BEST_OF), ("batch", MAX_BATCH)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and 1 <= value <= high):
                raise ValueError(f"{name} must be a whole number from 1 to {high}, not {quoted(value)}")
        stand_ins = {"steps": 1, "guidance_scale": 1.0, "height": 8, "width": 8}
        given = {key: value for key, value in self.settings.items() if value is not None}
        Request("", seed=0, **{**stand_ins, **given})

    @property
    def suffix(self) -> str:
        """Of files that do not say otherwise."""
        return f".{self.format}"

    @property
    def judged(self) -> bool:
        return self.score or self.best_of > 1
