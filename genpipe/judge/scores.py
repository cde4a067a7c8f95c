"""What a judge says of an image, and what makes something a judge."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from PIL import Image

BATCH = 64  # images that are looked at together


@dataclass(frozen=True)
class Check:
    """One thing that the prompt asks for, and whether it is there."""

    part: str  # object, colour, count, relation or setting
    wanted: str
    found: str  # what was seen instead, or the same
    probability: float
    right: bool


@dataclass(frozen=True)
class Score:
    """What a judge says of one picture.

    Attributes:
        total: 0 … 1, to order pictures of one prompt by: the geometric mean of the checks' probabilities, or for CLIP
            the similarity of picture and prompt. It is not the probability that all is right.
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
        """Ready for JSON."""
        return {"satisfied": self.satisfied, **asdict(self)}


class Scorer(Protocol):
    """Anything that scores pictures."""

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """One score for each picture and its prompt."""
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise ValueError for a prompt that it cannot judge, before anything is drawn for it."""
        ...
