"""A text encoder with its tokenizer, as the encoder of prompts takes them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextPart:
    """A text encoder and the tokenizer of its vocabulary.

    Attributes:
        tokenizer: makes the encoder's token ids.
        lend: gives the encoder, ready to run, for as long as it is needed.
        learned: vectors (n, D) of textual inversions, for the ids past the encoder's own (see `embeddings`).
    """

    tokenizer: Tokenizer
    lend: Callable[[], AbstractContextManager[TextEncoder]]
    learned: Tensor | None = None
