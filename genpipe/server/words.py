"""What a model reads of a prompt: how many tokens, and which words a model of the scenes' world has not learned."""

from collections.abc import Sequence
from typing import Any

from genpipe.messages import Notice, quoted
from genpipe.models.tokenizer import Tokenizer
from genpipe.prompts.listing import TokenList, list_tokens
from genpipe.prompts.reading import read_prompts
from genpipe.request import Request
from genpipe.scenes.normalise import normalise, notices
from genpipe.scenes.vocabulary import unknown_words

# Unknown words of a prompt that are named.
MOST = 10


def unknown_in(prompt: str, learned: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Give the words of a prompt that a model has not learned, each with known ones that come near.

    Args:
        learned: the model's concepts; () is all of the scenes' world.
    """
    pool = learned or None
    return unknown_words(normalise(prompt, pool).text, pool)


def notices_of(request: Request, learned: tuple[str, ...]) -> tuple[Notice, ...]:
    """Say which words of a request's prompts a model of the scenes' world does not know, or reads in its own way.

    Args:
        learned: see `unknown_in`.
    """
    found: list[Notice] = []
    for prompt in (request.prompt, request.negative_prompt):
        found += notices(normalise(prompt, learned or None))
        found += [_unknown(*each) for each in [*unknown_in(prompt, learned).items()][:MOST]]
    return tuple(dict.fromkeys(found))


def _unknown(word: str, near: tuple[str, ...]) -> Notice:
    if not near:
        return Notice("the model does not know {word}: it draws the rest", word=quoted(word))
    form = "the model does not know {word}, and draws the rest; it knows {near}"
    return Notice(form, word=quoted(word), near=", ".join(near))


def read_tokens(prompt: str, tokenizers: Sequence[Tokenizer], *, seed: int, steps: int, syntax: str) -> dict[str, Any]:
    """Say what the text encoders read of a prompt, ready for JSON.

    Of a prompt that changes over the steps, or whose parts AND joins, that is the longest of the texts; of text encoders
    that read differently, the one that reads most.

    Returns:
        "tokens", and the "room" for them; the "chunks", each a list of [id, text, weight]; "cut", the end that is not read;
        and "read_as", the prompt in the model's own words, None where it reads prompts as they stand. Without tokenizers,
        of a model that diffusers draws, nothing is known.

    Raises:
        ValueError: the prompt cannot be drawn as it is.
    """
    read = longest(prompt, tokenizers, seed=seed, steps=steps, syntax=syntax)
    if read is None:
        return {"tokens": None, "room": None, "chunks": [], "cut": "", "read_as": None}
    return {
        "tokens": sum(map(len, read.chunks)),
        "room": read.room * len(read.chunks),
        "chunks": [[[token.id, token.text, token.weight] for token in chunk] for chunk in read.chunks],
        "cut": read.cut,
        "read_as": read.words,
    }


def longest(prompt: str, tokenizers: Sequence[Tokenizer], *, seed: int, steps: int, syntax: str) -> TokenList | None:
    """Give the longest of what text encoders read of a prompt, see `read_tokens`; None without tokenizers.

    Raises:
        ValueError: the prompt cannot be drawn as it is.
    """
    texts = [part.text for stage in read_prompts(prompt, seed=seed, steps=steps, syntax=syntax) for part in stage.parts]
    found = [list_tokens(text, tokenizer, syntax=syntax) for text in texts for tokenizer in tokenizers]
    return max(found, key=lambda each: sum(map(len, each.chunks)), default=None)
