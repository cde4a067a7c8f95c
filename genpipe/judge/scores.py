"""What a judge says of an image, and what makes something a judge."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from PIL import Image

BATCH = 64  # images that are looked at together


@dataclass(frozen=True)
class Check:
    """One thing that the prompt asks for, and whether the image shows it."""

    part: str  # object, colour, count, relation or setting
    wanted: str
    found: str  # what was seen instead, or the same
    probability: float
    right: bool


@dataclass(frozen=True)
class Score:
    """What a judge says of one image.

    Attributes:
        total: 0 … 1, to order images of one prompt by: the geometric mean of the checks' probabilities, or for CLIP the
            similarity of image and prompt. It is not the probability that all is right.
        checks: one for each thing that the prompt asks for; CLIP names none.
    """

    prompt: str
    total: float
    checks: tuple[Check, ...] = ()

    @property
    def satisfied(self) -> bool | None:
        """Whether all that the prompt asks for is there; None where the judge cannot say."""
        return all(check.right for check in self.checks) if self.checks else None

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON has it."""
        return {"satisfied": self.satisfied, **asdict(self)}


@dataclass(frozen=True)
class Unscored:
    """An image that the judge gave no score, and the reason in one line."""

    prompt: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON has it, with a `total` of None."""
        return {"prompt": self.prompt, "total": None, "reason": self.reason}


@runtime_checkable
class Scorer(Protocol):
    """A judge: anything that scores images. The pipeline, `genpipe render` and `score` all take one."""

    def check_prompt(self, prompt: str) -> None:
        """Raise ValueError, in one line, for a prompt that this judge cannot read."""
        ...

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """Return one score for each image and its prompt, all of which `check_prompt` accepts."""
        ...


def judged(images: Sequence[Image.Image], prompts: Sequence[str], judge: Scorer) -> list[Score | Unscored]:
    """Score each image by its prompt, and lose none: what the judge cannot score comes back with the reason.

    Prompts that the judge cannot read are not shown to it. Where it fails on the images together, it gets them one by
    one, so that one bad image does not cost the others their scores.

    Args:
        images, prompts: as many of each.
        judge: anybody's; its errors of every kind become reasons.

    Raises:
        ValueError: not one prompt for each image.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts cannot be judged: give one prompt per image")
    results: list[Score | Unscored] = []
    reasons: dict[str, str | None] = {prompt: _unreadable(prompt, judge) for prompt in dict.fromkeys(prompts)}
    readable = [index for index, prompt in enumerate(prompts) if reasons[prompt] is None]
    found = iter(_scored([images[i] for i in readable], [prompts[i] for i in readable], judge) if readable else [])
    for prompt in prompts:
        reason = reasons[prompt]
        results.append(next(found) if reason is None else Unscored(prompt, reason))
    return results


def best_index(scores: Sequence[Score | Unscored]) -> int:
    """Return the index of the highest total: the first of equals, and the first of all where none has a score."""
    return max(range(len(scores)), key=lambda i: -1.0 if isinstance(one := scores[i], Unscored) else one.total)


def _unreadable(prompt: str, judge: Scorer) -> str | None:
    """Why the judge cannot read the prompt; None where it can."""
    try:
        judge.check_prompt(prompt)
    except ValueError as error:
        return _line(error)
    except Exception as error:  # noqa: BLE001 - a judge may be anybody's
        return _failure(error)
    return None


def _scored(images: Sequence[Image.Image], prompts: Sequence[str], judge: Scorer) -> list[Score | Unscored]:
    try:
        found = judge.scores(images, prompts)
        return [
            score if math.isfinite(score.total) else Unscored(prompt, f"the judge gave a total of {score.total}")
            for score, prompt in zip(found, prompts, strict=True)
        ]
    except Exception as error:  # noqa: BLE001 - a judge may be anybody's
        if len(images) > 1:
            return [_scored([image], [prompt], judge)[0] for image, prompt in zip(images, prompts, strict=True)]
        return [Unscored(prompts[0], _failure(error))]


def _failure(error: Exception) -> str:
    return f"the judge failed: {type(error).__name__}: {_line(error)}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
