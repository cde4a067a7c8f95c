"""Seeds, and which image of a call has which. Imports no torch."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from genpipe.fields import settings_of
from genpipe.messages import quoted
from genpipe.request import COUNT, MAX_SEED, Request


def seeds_for(seed: int, n: int) -> list[int]:
    """Give the seeds of `n` images: seed + k mod 2⁶⁴ for image k, so one image of a set can be drawn again alone.

    Raises:
        ValueError: `seed` outside 0 … 2⁶⁴ - 1, or `n` outside 1 … MAX_PICTURES.
    """
    seed = settings_of(Request)["seed"].kind.check("seed", seed)
    n = COUNT.check("n", n)
    return [(seed + k) % (MAX_SEED + 1) for k in range(n)]


def expand(
    prompt: str | Sequence[str], *, n: int = 1, seed: int | None = None, seeds: Sequence[int] | None = None
) -> list[tuple[str, int]]:
    """Give the prompt and the seed of every image, in the order of prompts, then of n.

    Args:
        prompt: one prompt, or a list.
        n: images per prompt, 1 … 100000.
        seed: of the first image; image k takes seed + k mod 2⁶⁴. None draws one.
        seeds: one for each image, instead of `seed`.

    Raises:
        ValueError: an argument is out of its range, or they do not go together.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else None
    if prompts is None or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt {quoted(prompt)} is not text: give a string or a list of strings")
    if not prompts:
        raise ValueError("prompt [] is an empty list: give at least one prompt")
    n = COUNT.check("n", n)
    texts = [text for text in prompts for _ in range(n)]
    if seeds is None:
        seeds = seeds_for(random_seed() if seed is None else seed, len(texts))
    elif not isinstance(seeds, Sequence) or isinstance(seeds, str):
        raise ValueError(f"seeds {quoted(seeds)} are not a list of seeds: give one for each image")
    elif seed is not None or len(seeds) != len(texts):
        raise ValueError(f"seeds holds {len(seeds)} for {len(texts)} images: give one for each, and no seed beside it")
    return list(zip(texts, seeds, strict=True))


def varied(requests: Iterable[Request]) -> list[Request]:
    """Let the variations of one prompt and seed go toward one seed after the other."""
    found, counts = [], Counter[tuple[str, int]]()
    for request in requests:
        if request.variation is not None:
            key = (request.prompt, request.seed)
            request = replace(request, vary_seed=(request.variation[0] + counts[key]) % (MAX_SEED + 1))
            counts[key] += 1
        found.append(request)
    return found


def random_seed() -> int:
    """Draw a seed from the system's entropy, below 2³² so that people can read it to each other."""
    return int.from_bytes(os.urandom(4))
