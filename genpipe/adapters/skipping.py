"""Steps at which a transformer evaluates its first block alone, where that has changed little: a request's speed.

It is diffusers' First Block Cache. What the other blocks added at the last full step is added again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import unwrap
from typing import Any

# How far, of its size, the first block's output may have changed: diffusers' default, and the value that it shows in use.
_THRESHOLDS = {"balanced": 0.05, "draft": 0.2}


def can_skip(kind: type, pipe: Any) -> bool:
    """Whether a class of pipelines tells its transformer which evaluation is which, and that transformer keeps them apart."""
    code = getattr(unwrap(kind.__call__), "__code__", None)
    if code is None or "cache_context" not in code.co_names:
        return False
    try:
        with skipping(pipe, "balanced"):
            return True
    except (ImportError, AttributeError, ValueError, IndexError):  # older, or of blocks that are not known there
        return False


@contextmanager
def skipping(pipe: Any, speed: str) -> Iterator[None]:
    """Let the transformer of a pipeline skip what a speed says, and forget it all in the end."""
    if speed == "exact":
        yield
        return
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=_THRESHOLDS[speed]))
    try:
        yield
    finally:
        pipe.transformer.disable_cache()
