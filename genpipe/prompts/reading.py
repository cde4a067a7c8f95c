"""What a prompt and its negative prompt say at each step of an image."""

from dataclasses import dataclass
from functools import lru_cache

from genpipe.prompts.alternatives import choose
from genpipe.prompts.schedule import conditionings
from genpipe.prompts.syntax import Span, plain_text, sections

# Readings that are kept: those of a large batch, which is grouped by what is read before it is drawn.
KEPT = 2048


@dataclass(frozen=True)
class Stage:
    """What guides an image over some of its steps.

    Attributes:
        steps: their numbers, from 1.
        parts: the prompts that guide it together, and how much each of them counts; most often one, of weight 1.
        negative: what it is led away from.
    """

    steps: range
    parts: tuple[Span, ...]
    negative: str


@lru_cache(KEPT)
def read_prompts(
    prompt: str, negative_prompt: str = "", *, seed: int, steps: int, syntax: str = "a1111"
) -> tuple[Stage, ...]:
    """Read a prompt and a negative prompt, from the first step of their image to its last.

    Brackets of weights and BREAK stay in the texts, for the prompt encoder.

    Args:
        seed: of the image, which chooses from alternatives in braces.
        steps: of the image.
        syntax: "a1111", or "plain", in which a prompt is one text for all steps.

    Raises:
        ValueError: the prompt cannot be drawn as it is, see `genpipe.prompts.schedule`.
    """
    if syntax == "plain":
        return (Stage(range(1, steps + 1), (Span(prompt, 1.0),), negative_prompt),)
    prompt, negative_prompt = chosen(prompt, negative_prompt, seed=seed, syntax=syntax)
    positive = conditionings(prompt, steps)
    negative = conditionings(negative_prompt, steps, composed=False)
    found, first = [], 1
    for end in sorted({each.steps[-1] for each in (*positive, *negative)}):
        parts = next(each.parts for each in positive if end in each.steps)
        (led_from,) = next(each.parts for each in negative if end in each.steps)
        found.append(Stage(range(first, end + 1), parts, led_from.text))
        first = end + 1
    return tuple(found)


def chosen(prompt: str, negative_prompt: str, *, seed: int, syntax: str = "a1111") -> tuple[str, str]:
    """Give a prompt and a negative prompt with the alternatives that the seed chooses."""
    if syntax == "plain":
        return prompt, negative_prompt
    return choose(prompt, seed), choose(negative_prompt, seed, of="negative_prompt")


def check_prompt(prompt: str, *, syntax: str = "a1111") -> None:
    """Check what can be known of a prompt without its image.

    Raises:
        ValueError: a weight is out of range.
    """
    if syntax == "a1111":
        sections(prompt)


def words_of(prompt: str, *, seed: int, syntax: str = "a1111") -> str:
    """Give what an image is meant to show in the end, without signs: for a judge, or for a list of unknown words.

    Args:
        seed: of the image, which chooses from alternatives in braces.
    """
    if syntax == "plain":
        return prompt
    last = read_prompts(prompt, seed=seed, steps=1000)[-1]
    return ", ".join(plain_text(part.text) for part in last.parts if part.weight > 0)
