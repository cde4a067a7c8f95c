"""What text encoders read of a prompt, token by token, for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from genpipe.models.tokenizer import Tokenizer
from genpipe.prompts.chunks import read_chunks
from genpipe.prompts.syntax import plain_text


@dataclass(frozen=True)
class ListedToken:
    """One token: its id, what it stands for, and how much it weighs."""

    id: int
    text: str
    weight: float


@dataclass(frozen=True)
class TokenList:
    """The tokens of a prompt.

    Attributes:
        chunks: the tokens of each chunk, without marks and padding.
        room: tokens that a chunk may hold.
        cut: the end of the prompt that is past the last chunk, "" if all is read.
        words: the prompt in the words that the model was trained on; None where it reads prompts as they stand.
    """

    chunks: tuple[tuple[ListedToken, ...], ...]
    room: int
    cut: str
    words: str | None = None


def list_tokens(prompt: str, tokenizer: Tokenizer, *, syntax: str = "a1111") -> TokenList:
    """List the tokens of a prompt of one step, as `genpipe.prompts.reading` gives it.

    Raises:
        ValueError: a weight is out of range, or the prompt is not text.
    """
    found = read_chunks(prompt, tokenizer, syntax=syntax)
    chunks = []
    for chunk in found.chunks:
        count = chunk.ids.index(tokenizer.eos_id, 1) - 1
        ids, weights = chunk.ids[1 : count + 1], chunk.weights[1 : count + 1]
        texts = tokenizer.texts(ids)
        chunks.append(tuple(ListedToken(*each) for each in zip(ids, texts, weights, strict=True)))
    words = None
    if tokenizer.normalise is not None:
        words = tokenizer.normalise(prompt if syntax == "plain" else plain_text(prompt))
    return TokenList(tuple(chunks), tokenizer.length - 2, found.cut, words)


def distinct(lists: Sequence[TokenList]) -> dict[TokenList, list[int]]:
    """Group text encoders, counted from 1, that read the same."""
    groups: dict[TokenList, list[int]] = {}
    for number, each in enumerate(lists, 1):
        groups.setdefault(each, []).append(number)
    return groups
