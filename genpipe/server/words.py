"""What a model reads of a prompt: how many tokens, and which words a model of the scenes' world has not learned."""

from collections.abc import Sequence
from typing import Any

from genpipe.messages import listed, quoted
from genpipe.models.tokenizer import Tokenizer
from genpipe.prompts.listing import list_tokens
from genpipe.prompts.reading import read_prompts
from genpipe.scenes.normalise import normalise
from genpipe.scenes.vocabulary import unknown_words


def unknown_in(prompt: str, learned: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Give the words of a prompt that a model has not learned, each with known ones that come near.

    Args:
        learned: the model's concepts; () is all of the scenes' world.
    """
    pool = learned or None
    return unknown_words(normalise(prompt, pool).text, pool)


def words_not_known(prompt: str, learned: tuple[str, ...]) -> tuple[str, ...]:
    """Say in one line what `unknown_in` gives; () for none."""
    unknown = unknown_in(prompt, learned)
    if not unknown:
        return ()
    named = [
        f"{quoted(word)} (did you mean {' or '.join(near)}?)" if near else quoted(word)
        for word, near in unknown.items()
    ]
    return (f"the model does not know {listed(named)}: it draws the rest",)


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
    if not tokenizers:
        return {"tokens": None, "room": None, "chunks": [], "cut": "", "read_as": None}
    texts = [part.text for stage in read_prompts(prompt, seed=seed, steps=steps, syntax=syntax) for part in stage.parts]
    found = [list_tokens(text, tokenizer, syntax=syntax) for text in texts for tokenizer in tokenizers]
    longest = max(found, key=lambda each: sum(map(len, each.chunks)))
    return {
        "tokens": sum(map(len, longest.chunks)),
        "room": longest.room * len(longest.chunks),
        "chunks": [[[token.id, token.text, token.weight] for token in chunk] for chunk in longest.chunks],
        "cut": longest.cut,
        "read_as": longest.words,
    }
