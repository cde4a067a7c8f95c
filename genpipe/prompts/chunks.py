"""Prompts of any length as chunks of tokens, each as long as a text encoder reads: what A1111 does past 75 tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from genpipe.messages import Notice
from genpipe.models.tokenizer import Tokenizer
from genpipe.prompts.syntax import Span, sections

# A comma among so many of a full chunk's last tokens ends the chunk early, so that what it divides stays together.
COMMA_REACH = 20
# Chunks of a prompt; what is past them is cut off. People write up to five.
MAX_CHUNKS = 20


class Chunk(NamedTuple):
    """As many token ids as the text encoder reads, with marks and padding, and a weight for each."""

    ids: list[int]
    weights: list[float]


class Chunks(NamedTuple):
    """The chunks of a prompt, at least one, and `cut`: the end of it that is past `MAX_CHUNKS`, "" if all is there."""

    chunks: list[Chunk]
    cut: str


def cut_notice(length: int, cut: str) -> Notice:
    """Say that of a prompt so many tokens are read, and `cut` is left out."""
    shown = repr(cut if len(cut) <= 60 else f"{cut[:60]}…")
    return Notice("the prompt is cut after {length} tokens, leaving out {cut}", length=length, cut=shown)


def read_chunks(prompt: str, tokenizer: Tokenizer, *, syntax: str = "a1111") -> Chunks:
    """Read a prompt as `syntax` says: "a1111" as `chunks_of` does, "plain" as one chunk of its words as they stand."""
    if syntax == "a1111":
        return chunks_of(prompt, tokenizer)
    tokens = tokenizer([prompt])
    return Chunks([Chunk(tokens.ids[0], [1.0] * tokenizer.length)], tokens.cut[0])


def chunks_of(prompt: str, tokenizer: Tokenizer) -> Chunks:
    """Split a prompt in A1111's grammar of weights into chunks; BREAK begins a new one.

    Args:
        prompt: see `genpipe.prompts.syntax`.
        tokenizer: a chunk holds its `length` - 2 tokens besides the marks.

    Raises:
        ValueError: a weight is out of range, or the prompt is not text.
    """
    size, comma = tokenizer.length - 2, tokenizer.comma_id
    full: list[list[tuple[int, float]]] = []
    tokens: list[tuple[int, float]] = []
    divided = None  # where the last comma of `tokens` is
    found = sections(prompt)
    for number, spans in enumerate(found):
        if number:
            full.append(tokens)
            tokens, divided = [], None
        if len(full) >= MAX_CHUNKS:
            rest = " BREAK ".join("".join(span.text for span in each) for each in found[number:])
            return Chunks([_chunk(each, tokenizer) for each in full], rest)
        for text, weight in _in_words(spans, tokenizer):
            ids, starts = tokenizer.encode(text)
            for place, (index, start) in enumerate(zip(ids, starts, strict=True)):
                if index == comma:
                    divided = len(tokens)
                elif len(tokens) == size and divided is not None and size - divided <= COMMA_REACH:
                    full.append(tokens[: divided + 1])
                    tokens, divided = tokens[divided + 1 :], None
                # The vectors of a textual inversion, which begin at one character, stay together.
                learned = index >= tokenizer.vocab_size and start not in starts[max(0, place - 1) : place]
                needed = min(size, bisect_right(starts, start) - place) if learned else 1
                if len(tokens) + needed > size:
                    full.append(tokens)
                    tokens, divided = [], None
                if len(full) >= MAX_CHUNKS:
                    return Chunks([_chunk(each, tokenizer) for each in full], text[start:])
                tokens.append((index, weight))
    if tokens or not full:
        full.append(tokens)
    return Chunks([_chunk(each, tokenizer) for each in full], "")


def _chunk(tokens: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> Chunk:
    row = tokenizer.row([index for index, _ in tokens])
    weights = [weight for _, weight in tokens]
    return Chunk(row, [1.0, *weights, *[1.0] * (len(row) - 1 - len(weights))])


def _in_words(spans: Sequence[Span], tokenizer: Tokenizer) -> Sequence[Span]:
    """The spans in the words that the model was trained on, where the tokenizer puts prompts into them.

    A prompt is put into words as a whole, since what stands before and after a word counts; where the words of the whole
    are not those of its spans, each span is put into words by itself.
    """
    normalise = tokenizer.normalise
    if normalise is None or not spans:
        return spans
    text = normalise("".join(span.text for span in spans))
    if len(spans) == 1:
        return [Span(text, spans[0].weight)]
    whole = text.split()
    apart = [Span(normalise(span.text), span.weight) for span in spans]
    owned = [(word.strip(",:"), span.weight) for span in apart for word in span.text.split()]
    if [word.strip(",:") for word in whole] != [word for word, _ in owned]:
        return apart
    return [Span(word, weight) for word, (_, weight) in zip(whole, owned, strict=True)]
