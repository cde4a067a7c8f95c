"""What determines one picture: prompt, seed, size and settings, checked once, on construction.

Imports no torch, so that a command line can refuse a bad value before anything heavy loads.
"""

import dataclasses
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any

from genpipe.messages import listed, quoted
from genpipe.sampling.names import canonical_name
from genpipe.sampling.speed import SPEEDS

MAX_SEED = 2**64 - 1
MAX_PICTURES = 100_000  # of one call
MAX_STEPS = 1000
MAX_GUIDANCE = 1000.0
MAX_BEST_OF = 100
# Pixels a side; past this, attention and the decoder need more memory than machines have.
MAX_SIDE = 8192


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that determines one picture, given the model.

    Two equal requests to one model draw the same picture, whatever batch or process each is in. Numbers of numpy and
    whole numbers for floats are accepted and stored as plain Python's; samplers are stored by their canonical name.

    Attributes:
        prompt: what to draw; may be empty.
        seed: of the picture's noise, 0 … 2⁶⁴ - 1.
        steps: solver steps, 1 … 1000.
        guidance_scale: weight of the prompt, 0 … 1000; 1 or less turns guidance off.
        height, width: in pixels, 1 … 8192 (`check_size` knows what a given autoencoder can do).
        negative_prompt: what guidance leads away from.
        guidance_rescale: 0 … 1 (arXiv 2305.08891, section 3.4).
        sampler: canonical name, or None for the checkpoint's own.
        clip_skip: last layers of the text encoder to leave out, 0 or more.
        speed: "exact", or "balanced" and "draft", which evaluate less (`sampling.speed`).

    Raises:
        ValueError: a value is of the wrong type or out of its range; one line that says how to put it right.
    """

    prompt: str
    _: KW_ONLY
    seed: int
    steps: int
    guidance_scale: float
    height: int
    width: int
    negative_prompt: str = ""
    guidance_rescale: float = 0.0
    sampler: str | None = None
    clip_skip: int = 0
    speed: str = "exact"

    def __post_init__(self) -> None:
        checked = {
            "prompt": _text("prompt", self.prompt),
            "negative_prompt": _text("negative_prompt", self.negative_prompt),
            "seed": _whole("seed", self.seed, 0, MAX_SEED, "leave it out for a random one"),
            "steps": _whole("steps", self.steps, 1, MAX_STEPS, "20 to 50 are usual"),
            "guidance_scale": _number("guidance_scale", self.guidance_scale, MAX_GUIDANCE, "5 to 10 are usual"),
            "guidance_rescale": _number("guidance_rescale", self.guidance_rescale, 1.0, "0 turns it off"),
            "height": _whole("height", self.height, 1, MAX_SIDE, "give it in pixels"),
            "width": _whole("width", self.width, 1, MAX_SIDE, "give it in pixels"),
            "sampler": None if self.sampler is None else canonical_name(self.sampler),
            "clip_skip": _whole("clip_skip", self.clip_skip, 0, 99, "0 uses every layer"),
            "speed": _one_of("speed", self.speed, SPEEDS),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Request":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of its range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := [str(key) for key in values if key not in fields]:
            raise ValueError(f"a request has no {listed(sorted(unknown))}: its keys are {', '.join(fields)}")
        required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"the request lacks {', '.join(missing)}: it needs at least {', '.join(required)}")
        return cls(**values)


def check_size(height: int, width: int, factor: int) -> None:
    """Raise ValueError, with the nearest sizes that work, unless height and width are multiples of `factor`.

    `factor` is how many pixels a side one latent pixel stands for (8 in Stable Diffusion).
    """
    for name, value in (("height", height), ("width", width)):
        value = _whole(name, value, 1, MAX_SIDE, f"a multiple of {factor}")
        if value % factor:
            below = value // factor * factor
            near = [side for side in (below, below + factor) if factor <= side <= MAX_SIDE]
            raise ValueError(
                f"{name} must be a multiple of {factor} for this model, not {value}: "
                f"the nearest is {' or '.join(map(str, near))}"
            )


def seeds_for(seed: int, n: int) -> list[int]:
    """The seeds of `n` pictures: seed + k mod 2⁶⁴ for picture k, so one picture of a set can be drawn again alone.

    Raises:
        ValueError: `seed` outside 0 … 2⁶⁴ - 1, or `n` outside 1 … MAX_PICTURES.
    """
    seed = _whole("seed", seed, 0, MAX_SEED, "leave it out for a random one")
    n = _whole("n", n, 1, MAX_PICTURES, "it is the number of pictures")
    return [(seed + k) % (MAX_SEED + 1) for k in range(n)]


def expand(
    prompt: str | Sequence[str], *, n: int = 1, seed: int | None = None, seeds: Sequence[int] | None = None
) -> list[tuple[str, int]]:
    """The prompt and the seed of every picture, in the order of prompts, then of n.

    Args:
        prompt: one prompt, or a list.
        n: pictures a prompt, 1 … 100000.
        seed: of the first picture; picture k takes seed + k mod 2⁶⁴. None draws one.
        seeds: one for each picture, instead of `seed`.

    Raises:
        ValueError: an argument is out of its range, or they do not go together.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else None
    if prompts is None or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt {quoted(prompt)} is not text: give a string or a list of strings")
    if not prompts:
        raise ValueError("prompt [] is an empty list: give at least one prompt")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_PICTURES:
        raise ValueError(f"n {quoted(n)} is out of range: give a whole number of pictures, 1 to {MAX_PICTURES}")
    texts = [text for text in prompts for _ in range(n)]
    if seeds is None:
        seeds = seeds_for(random_seed() if seed is None else seed, len(texts))
    elif seed is not None or len(seeds) != len(texts):
        raise ValueError(
            f"seeds holds {len(seeds)} for {len(texts)} pictures: give one for each, and no seed beside it"
        )
    return list(zip(texts, seeds, strict=True))


def check_best_of(best_of: int) -> None:
    """Raise ValueError unless `best_of` is a number of pictures to choose one from, 1 … MAX_BEST_OF."""
    _whole("best_of", best_of, 1, MAX_BEST_OF, "4 to 16 are usual")


def random_seed() -> int:
    """A seed from the system's entropy, below 2³² so that people can read it to each other."""
    return int.from_bytes(os.urandom(4))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {quoted(value)} ({type(value).__name__}): give a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Half a surrogate pair, or bytes of a command line in another encoding.
        bad = f"{value[error.start]!a} at character {error.start}"
        raise ValueError(f"{name} must be Unicode text, not {bad}: encode it as UTF-8") from None
    return str(value)


def _one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {quoted(value)}")
    return value


def _whole(name: str, value: Any, low: int, high: int | None, fix: str) -> int:
    allowed = f"a whole number from {low} to {high}" if high is not None else f"a whole number, {low} or more"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {allowed}, not {quoted(value)}: {fix}")
    return number


def _number(name: str, value: Any, high: float, fix: str) -> float:
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not 0 <= number <= high:
        raise ValueError(f"{name} must be a number from 0 to {high:g}, not {quoted(value)}: {fix}")
    return number
