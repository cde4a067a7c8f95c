"""Textual inversions in prompts: words that stand for learned vectors."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genpipe.prompts.text_part import TextPart

_NAMED = re.compile(r"(?<!\w)embedding:([\w.-]*\w)", re.IGNORECASE)


def with_embeddings(
    parts: Sequence[TextPart],
    vectors: Mapping[str, Sequence[Tensor]],
    *,
    vocab_sizes: Sequence[int],
    device: torch.device,
) -> tuple[TextPart, ...]:
    """Teach text encoders the words of textual inversions.

    Args:
        parts: the text encoders, in joining order.
        vectors: by word, in lower case: for each encoder (n, D), the same n for all, as `load_embeddings` gives them.
        vocab_sizes: of the encoders: their own token ids end there.
        device: where the encoders run.
    """
    if not vectors:
        return tuple(parts)
    counts = {word: len(each[0]) for word, each in vectors.items()}
    return tuple(
        replace(
            part,
            tokenizer=part.tokenizer.with_words(counts, first=size),
            learned=torch.cat([each[index] for each in vectors.values()]).to(device),  # (all n, D)
        )
        for index, (part, size) in enumerate(zip(parts, vocab_sizes, strict=True))
    )


def missing(prompts: Iterable[str], words: Collection[str]) -> Iterator[str]:
    """Find the textual inversions that prompts name as ComfyUI does, "embedding:NAME", and that are not there."""
    for prompt in prompts:
        for match in _NAMED.finditer(prompt):
            if not any(match[1].lower().startswith(word) for word in words):
                yield match[1]
