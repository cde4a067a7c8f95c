"""What a transformer does not compute anew at every step: a request's speed.

Diffusers has caches for that. Its First Block Cache evaluates the first block alone where that has changed little, and adds
what the others added at the last full step; it is used where diffusers knows the blocks and the pipeline tells the
transformer's evaluations apart. In other transformers it is Pyramid Attention Broadcast (arXiv 2408.12588): in the middle of
the schedule, what attention gave at one step is used at the next ones, too.

Its FasterCache is not used: it wants to be told which arguments hold prompt and negative prompt side by side, and of the
families in the tests that have no First Block Cache it runs with PixArt, Sana and AuraFlow alone.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import unwrap
from typing import Any, Literal

from genpipe.adapters.instead import instead

Cache = Literal["first block", "attention"]
# How far, of its size, the first block's output may have changed: diffusers' default, and the value that it shows in use.
_THRESHOLDS = {"balanced": 0.05, "draft": 0.2}
# At one of how many steps attention is computed: diffusers' default, and one more.
_STEPS = {"balanced": 2, "draft": 3}
_HOOK = "pyramid_attention_broadcast"


def cache_of(kind: type, pipe: Any) -> Cache | None:
    """Say which cache a class of pipelines can draw with, given one of its transformer; None where there is none."""
    if getattr(pipe, "transformer", None) is None:
        return None
    code = getattr(unwrap(kind.__call__), "__code__", None)
    caches: tuple[Cache, ...] = ("first block", "attention")
    for cache in caches if code is not None and "cache_context" in code.co_names else caches[1:]:
        try:
            with skipping(pipe, cache, "balanced"):
                return cache
        except (ImportError, AttributeError, ValueError, IndexError):  # older, or of parts that are not known there
            continue
    return None


@contextmanager
def skipping(pipe: Any, cache: Cache | None, speed: str) -> Iterator[None]:
    """Let the transformer of a pipeline skip what a speed says by a cache, and forget it all in the end.

    Raises:
        ValueError: it has nothing that the cache could keep.
    """
    if speed == "exact":
        yield
    elif cache == "first block":
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=_THRESHOLDS[speed]))
        try:
            yield
        finally:
            pipe.transformer.disable_cache()
    else:
        with _broadcasting(pipe, _STEPS[speed]):
            yield


@contextmanager
def _broadcasting(pipe: Any, steps: int) -> Iterator[None]:
    """Let attention be computed at one of so many steps, while a tenth to four fifths of the schedule are left."""
    from diffusers.hooks.hooks import HookRegistry
    from diffusers.hooks.pyramid_attention_broadcast import (
        PyramidAttentionBroadcastConfig,
        PyramidAttentionBroadcastState,
        apply_pyramid_attention_broadcast,
    )

    transformer, scheduler = pipe.transformer, pipe.scheduler
    step, done, evaluations = scheduler.step, 0, 0
    states: list[list[Any]] = []  # of each evaluation within a step, as of prompt and negative prompt

    def left() -> int:
        """What is left of the schedule, in thousandths; diffusers asks for a timestep, which goes another way in each family."""
        return 1000 - 1000 * done // len(scheduler.timesteps)

    @functools.wraps(step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        nonlocal done, evaluations
        done, evaluations = done + 1, 0
        return step(*args, **kwargs)

    def evaluate(*_: Any) -> None:
        nonlocal evaluations
        if evaluations == len(states):
            states.append([PyramidAttentionBroadcastState() for _ in hooks])
        for hook, state in zip(hooks, states[evaluations], strict=True):
            hook.state = state
        evaluations += 1

    apply_pyramid_attention_broadcast(
        transformer,
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=steps,
            cross_attention_block_skip_range=steps,
            current_timestep_callback=left,
        ),
    )
    found = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    hooks = [hook for one in found if one is not None and (hook := one.get_hook(_HOOK)) is not None]
    told = transformer.register_forward_pre_hook(evaluate)
    try:
        if not hooks:
            raise ValueError(f"{type(transformer).__name__} has no attention that diffusers could keep")
        with instead(scheduler, "step", stepped):
            yield
    finally:
        told.remove()
        HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(_HOOK, recurse=True)
