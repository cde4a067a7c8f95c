"""Speeds: what diffusers' First Block Cache draws, where a family has it, and an error where it has not."""

from collections.abc import Callable
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
STEPS = 12


def test_the_families_here_are_those_that_can_skip(loaded: Load):
    assert sorted(one.name for one in families() if "speed" in (loaded(one).traits.takes or ())) == SKIPS


@pytest.mark.parametrize("name", SKIPS)
@pytest.mark.parametrize(("speed", "threshold"), [("balanced", 0.05), ("draft", 0.2)])
def test_an_image_is_that_of_diffusers_with_its_cache(name: str, speed: str, threshold: float, loaded: Load):
    diffusers: Any = import_module("diffusers")
    family = family_named(name)
    pipeline, settings = loaded(family), {**family.settings, "steps": STEPS, "seed": 3, "progress": False}
    assert isinstance(pipeline.drawer, WrappedDrawer)
    pipe = pipeline.drawer.adapted.pipe
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


@pytest.mark.parametrize("name", ["Stable Diffusion 3", "Kandinsky 2.2", "PixArt-Σ"])
def test_a_family_that_skips_nothing_says_so(name: str, loaded: Load):
    family = family_named(name)
    with pytest.raises(ValueError, match="speed is not for this model"):
        loaded(family)("a red cat", seed=3, speed="draft", progress=False, **family.settings)


def test_a_form_that_skips_nothing_says_so(loaded: Load):
    family = family_named("FLUX.1 dev")
    given: Any = {**family.settings, "speed": "draft", "image": picture((32, 32)), "strength": 0.5, "progress": False}
    with pytest.raises(ValueError, match="speed 'draft' is not for this model's image"):
        loaded(family)("a red cat", seed=3, **given)


def test_a_stream_that_is_closed_leaves_nothing_behind(loaded: Load):
    family = family_named("FLUX.1 dev")
    pipeline = loaded(family)
    (request,) = pipeline.requests("a red cat", seed=3, speed="draft", **family.settings)
    stream = pipeline.stream([request])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert isinstance(pipeline.drawer, WrappedDrawer)
    assert not pipeline.drawer.adapted.pipe.transformer.is_cache_enabled
    image = levels(pipeline("a red cat", seed=3, progress=False, **family.settings))
    assert np.array_equal(image, by_hand(pipeline, family, "a red cat", 3))
    assert torch.is_inference_mode_enabled() is False
