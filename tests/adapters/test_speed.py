"""Speeds: what diffusers' caches draw, where a family has one, and an error where it has not."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from genpipe.pipeline import Pipeline
from genpipe.pipeline.wrapped import WrappedDrawer
from tests.adapters.conftest import families, family_named
from tests.adapters.test_families import by_hand, levels
from tests.adapters.test_images import picture
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it will drop one day
Load = Callable[[Family], Pipeline]
SKIPS = ["FLUX.1 dev", "FLUX.1 schnell", "Qwen-Image"]
BROADCASTS = ["AuraFlow", "HunyuanDiT", "Kandinsky 5", "Lumina 2", "PixArt-Σ", "Sana", "Stable Diffusion 3", "Z-Image"]
STEPS = 12


def pipe_of(pipeline: Pipeline) -> Any:
    assert isinstance(pipeline.drawer, WrappedDrawer)
    return pipeline.drawer.adapted.pipe


def test_the_families_here_are_those_that_can_skip(loaded: Load):
    found: dict[str, list[str]] = {"first block": [], "attention": []}
    for one in families():
        pipeline = loaded(one)
        assert isinstance(pipeline.drawer, WrappedDrawer)
        cache = pipeline.drawer.adapted.forms["text"].cache
        assert (cache is not None) == ("speed" in (pipeline.traits.takes or ()))
        if cache is not None:
            found[cache].append(one.name)
    assert sorted(found["first block"]) == SKIPS
    assert sorted(found["attention"]) == BROADCASTS


@contextmanager
def broadcast(pipe: Any, steps: int) -> Iterator[list[int]]:
    """Keep what attention gives in the middle of the schedule, for each evaluation within a step; how often it was computed."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    transformer, step = pipe.transformer, pipe.scheduler.step
    done, evaluation, computed = [0], [-1], [0]
    kept: dict[Any, Any] = {}

    def stepped(*given: Any, **more: Any) -> Any:
        done[0], evaluation[0] = done[0] + 1, -1
        return step(*given, **more)

    def cached(module: Any, forward: Any) -> Any:
        def run(*given: Any, **more: Any) -> Any:
            key = module, evaluation[0]
            within = 0.2 * STEPS < done[0] < 0.9 * STEPS
            if key not in kept or not within or done[0] % steps == 0:
                computed[0] += 1
                kept[key] = forward(*given, **more)
            return kept[key]

        return run

    hook = transformer.register_forward_pre_hook(lambda *_: evaluation.__setitem__(0, evaluation[0] + 1))
    changed: list[Any] = [
        module
        for name, module in transformer.named_modules()
        if isinstance(module, Attention | AttentionModuleMixin) and ("blocks" in name or "layers" in name)
    ]
    before = [module.forward for module in changed]
    for module, forward in zip(changed, before, strict=True):
        module.forward = cached(module, forward)
    pipe.scheduler.step = functools.wraps(step)(stepped)
    yield computed
    for module, forward in zip(changed, before, strict=True):
        module.forward = forward
    del pipe.scheduler.step
    hook.remove()


@pytest.mark.parametrize(("speed", "steps"), [("balanced", 2), ("draft", 3)])
@pytest.mark.parametrize("name", [name for name in BROADCASTS if name != "Kandinsky 5"])
def test_attention_is_computed_at_one_of_so_many_steps(name: str, speed: str, steps: int, loaded: Load):
    family = family_named(name)
    pipeline, settings = loaded(family), {**family.settings, "steps": STEPS, "seed": 3, "progress": False}
    pipe, exact = pipe_of(pipeline), Family(name, None, {**family.by_hand, "num_inference_steps": STEPS}, {})
    drawn, plain = (levels(pipeline("a red cat", **settings, speed=each)) for each in (speed, "exact"))
    with broadcast(pipe, 1) as whole:
        assert np.array_equal(plain, by_hand(pipeline, exact, "a red cat", 3)), "nothing is left behind"
    with broadcast(pipe, steps) as computed:
        assert np.array_equal(drawn, by_hand(pipeline, exact, "a red cat", 3))
    assert (
        computed[0] / whole[0] == {2: 8, 3: 7}[steps] / STEPS
    )  # of steps 3 to 10 those are skipped that it does not divide


@pytest.mark.parametrize("name", ["Stable Diffusion 3", "PixArt-Σ"])
def test_attention_is_kept_as_by_diffusers(name: str, loaded: Load):
    from diffusers.hooks.hooks import HookRegistry
    from diffusers.hooks.pyramid_attention_broadcast import (
        PyramidAttentionBroadcastConfig,
        apply_pyramid_attention_broadcast,
    )

    family = family_named(name)
    pipeline, pipe = loaded(family), pipe_of(loaded(family))
    given: Any = {**family.settings, "steps": STEPS, "speed": "balanced", "progress": False}
    drawn = levels(pipeline("a red cat", seed=3, **given))
    evaluated = [-1]
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: evaluated.__setitem__(0, evaluated[0] + 1))
    apply_pyramid_attention_broadcast(
        pipe.transformer,
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=2,
            current_timestep_callback=lambda: 1000 - 1000 * evaluated[0] // STEPS,
        ),
    )
    exact = Family(name, None, {**family.by_hand, "num_inference_steps": STEPS}, {})
    assert np.array_equal(drawn, by_hand(pipeline, exact, "a red cat", 3))
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).remove_hook(
        "pyramid_attention_broadcast", recurse=True
    )
    hook.remove()


@pytest.mark.parametrize("name", SKIPS)
@pytest.mark.parametrize(("speed", "threshold"), [("balanced", 0.05), ("draft", 0.2)])
def test_an_image_is_that_of_diffusers_with_its_cache(name: str, speed: str, threshold: float, loaded: Load):
    diffusers: Any = import_module("diffusers")
    family = family_named(name)
    pipeline, settings = loaded(family), {**family.settings, "steps": STEPS, "seed": 3, "progress": False}
    pipe = pipe_of(pipeline)
    last = [*pipe.transformer.children()][-1]
    blocks = getattr(pipe.transformer, "single_transformer_blocks", pipe.transformer.transformer_blocks)
    ran: list[int] = []
    hook = blocks[-1].register_forward_hook(lambda *_: ran.append(1))
    drawn = levels(pipeline("a red cat", speed=speed, **settings))
    hook.remove()
    exact = Family(name, None, {**family.by_hand, "num_inference_steps": STEPS}, {})
    assert np.array_equal(levels(pipeline("a red cat", **settings)), by_hand(pipeline, exact, "a red cat", 3))
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=threshold))
    try:
        assert np.array_equal(drawn, by_hand(pipeline, exact, "a red cat", 3))
    finally:
        pipe.transformer.disable_cache()
    assert last is not None and ran


def test_images_of_a_batch_are_those_drawn_alone_at_a_lower_speed_too(loaded: Load):
    family = family_named("FLUX.1 dev")
    given: Any = {**family.settings, "steps": STEPS, "speed": "draft", "progress": False}
    pipeline = loaded(family)
    together = pipeline(["a red cat", "a blue dog"], seeds=[3, 4], **given)
    alone = [pipeline("a red cat", seed=3, **given), pipeline("a blue dog", seed=4, **given)]
    assert all(np.array_equal(levels(one), levels(other)) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", ["unCLIP", "Kandinsky 2.2", "DeepFloyd IF"])
def test_a_family_that_skips_nothing_says_so(name: str, loaded: Load):
    family = family_named(name)
    with pytest.raises(ValueError, match="speed is not for this model"):
        loaded(family)("a red cat", seed=3, speed="draft", progress=False, **family.settings)


def test_over_an_image_attention_is_kept_where_the_pipeline_tells_no_evaluations_apart(loaded: Load):
    family = family_named("FLUX.1 dev")
    given: Any = {**family.settings, "steps": STEPS, "image": picture((32, 32)), "strength": 1.0, "progress": False}
    pipeline = loaded(family)
    drawn, plain = (levels(pipeline("a red cat", seed=3, speed=each, **given)) for each in ("draft", "exact"))
    assert isinstance(pipeline.drawer, WrappedDrawer)
    with broadcast(pipeline.drawer.adapted.forms["image"].pipe, 3) as computed:
        assert np.array_equal(drawn, levels(pipeline("a red cat", seed=3, **given)))
    assert computed[0] == 7 * 2 and not np.array_equal(drawn, plain)


@pytest.mark.parametrize("name", ["FLUX.1 dev", "Stable Diffusion 3"])
def test_a_stream_that_is_closed_leaves_nothing_behind(name: str, loaded: Load):
    family = family_named(name)
    pipeline = loaded(family)
    (request,) = pipeline.requests("a red cat", seed=3, speed="draft", **family.settings)
    stream = pipeline.stream([request])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    hooks = [getattr(module, "_diffusers_hook", None) for module in pipe_of(pipeline).transformer.modules()]
    assert not any(registry.hooks for registry in hooks if registry is not None)
    assert "step" not in vars(pipe_of(pipeline).scheduler)
    image = levels(pipeline("a red cat", seed=3, progress=False, **family.settings))
    assert np.array_equal(image, by_hand(pipeline, family, "a red cat", 3))
    assert torch.is_inference_mode_enabled() is False
