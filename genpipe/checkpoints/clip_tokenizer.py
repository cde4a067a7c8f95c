"""CLIP's tokenizer, which single files do not hold: its merges ship with genpipe."""

import gzip
from functools import cache
from pathlib import Path

from genpipe.models.tokenizer import EOS, LENGTH, Tokenizer, tokenizer_of_merges

_MERGES = Path(__file__).with_name("clip_merges.txt.gz")


@cache
def clip_tokenizer(pad: str = EOS, length: int = LENGTH) -> Tokenizer:
    """CLIP's tokenizer: 49,408 tokens.

    Args:
        pad: the token that fills prompts up; "!" for Stable Diffusion 2 and the second encoder of XL.
        length: tokens of every prompt, the begin and end marks included.
    """
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    return tokenizer_of_merges([(left, right) for left, right in merges], pad=pad, length=length)
