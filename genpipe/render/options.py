"""How to render."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from genpipe.fields import Choice, Whole, defaults_of, settings_of
from genpipe.messages import listed, quoted
from genpipe.request import BEST_OF, COUNT, SETTINGS, Request
from genpipe.settings import Settings
from genpipe.spec import ModelSpec, PortableOptions
from genpipe.workers.messages import Job

BATCH = Whole(1, 1024, "leave it out to have it measured")
_FORMAT = Choice(("png", "jpg", "webp"))


@dataclass(frozen=True)
class Options:
    """How to render. `Options.of` takes the attributes of `spec` and `settings` among its own.

    Attributes:
        spec: the model; its device is left to the engine.
        settings: of every row that does not say otherwise: steps, guidance_scale, width, …; what is left out or None is
            left to the model.
        n: images per row.
        seeds: each drawn for every row that names none; None derives a seed from what the row says.
        batch: images that go through the networks together; None finds out what is fast.
        format: "png", "jpg" or "webp", where a row's file name does not say.
        deterministic: bitwise the same images in any batch.
        best_of: images drawn for each that is kept, the one with the highest score.
        score: have the judge score each image.
        judge: which, see `genpipe.judge.choose_judge`; None is the embedded one, for the embedded model.
        sign: a file of certificates and a private key that the images are signed with, see `genpipe.signing`; not stored.
        strict: stop at a row that cannot be drawn.
        verify: check the hashes of the images that are there, not only their sizes.
        force: go on in a folder that was made with other settings.
        retry_failed: draw again what failed before.

    Raises:
        ValueError: a value is out of its range.
    """

    spec: ModelSpec = field(default_factory=ModelSpec)
    settings: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    seeds: Sequence[int] | None = None
    batch: int | None = None
    format: str = "png"
    deterministic: bool = False
    best_of: int = 1
    score: bool = False
    judge: str | None = None
    sign: str | None = None
    strict: bool = False
    verify: bool = False
    force: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.settings) - set(SETTINGS)):
            raise ValueError(f"render has no setting {listed(unknown)}: they are {', '.join(SETTINGS)}")
        if self.spec.device is not None:
            raise ValueError(
                f"device {quoted(self.spec.device)} is one worker's: give devices, such as cuda:0,cuda:1 or cpu:4"
            )
        _FORMAT.check("format", self.format)
        COUNT.check("n", self.n)
        BEST_OF.check("best_of", self.best_of)
        if self.batch is not None:
            BATCH.check("batch", self.batch)
        if self.sign is not None:
            from genpipe.signing import Signer

            Signer(self.sign)  # or it cannot be used
        Request.check_settings(self.given)

    @classmethod
    def of(cls, **values: Any) -> "Options":
        """Make options of keywords among which those of the model and of the settings stand, too.

        Raises:
            ValueError: one is unknown or out of its range.
        """
        own, model = {one.name for one in fields(cls)}, settings_of(ModelSpec)
        spec = {name: value for name, value in values.items() if name in model}
        settings = {name: value for name, value in values.items() if name not in own and name not in model}
        given = {name: value for name, value in values.items() if name in own}
        if spec:
            given["spec"] = ModelSpec.from_dict(spec)
        return cls(**{**given, "settings": {**given.get("settings", {}), **settings}})

    @property
    def given(self) -> dict[str, Any]:
        """The settings that say something."""
        return {name: value for name, value in self.settings.items() if value is not None}

    @property
    def recorded(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            name: value for name, value in Request.check_settings(self.given).to_dict().items() if name in self.given
        }

    @property
    def suffix(self) -> str:
        """The suffix of files that do not say otherwise."""
        return f".{self.format}"

    def job(self, out: str) -> Job:
        """Give what the workers of a run into a folder, or what an fsspec URL names, have to know."""
        return Job(
            out=out,
            spec=self.spec,
            deterministic=self.deterministic,
            best_of=self.best_of,
            judged=self.judged,
            judge=self.judge,
            sign=None if self.sign is None else str(Path(self.sign).expanduser().absolute()),
        )

    @property
    def judged(self) -> bool:
        """Whether a judge is needed."""
        return self.score or self.best_of > 1


class RenderOptions(PortableOptions, Settings, total=False):
    """What `render` takes besides source, out and engine: the attributes of `Options`, `ModelSpec` and `Request`."""

    model: "str | Path | None"
    dtype: str | None
    n: int
    seeds: Sequence[int] | None
    batch: int | None
    format: str
    deterministic: bool
    best_of: int
    score: bool
    judge: str | None
    sign: str | None
    strict: bool
    verify: bool
    force: bool
    retry_failed: bool


def identity_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is the default, so that a setting that is added later changes no image's id."""
    defaults = defaults_of(Request)
    given = {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}
    # Images are the same wherever they lie.
    return {name: _by_content(value) for name, value in given.items()}


def _by_content(value: Any) -> Any:
    if isinstance(value, list):
        return [_by_content(one) for one in value]
    return {key: item for key, item in value.items() if key != "path"} if isinstance(value, dict) else value
