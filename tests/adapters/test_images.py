"""Images to begin from, and parts of them: what diffusers' own pipelines for them draw, with the networks that are loaded."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.metadata import read_made
from genpipe.pipeline import Pipeline
from genpipe.pipeline.wrapped import WrappedDrawer
from tests.adapters.conftest import families, family_named
from tests.adapters.families.kandinsky import build_22
from tests.adapters.families.unclip import build_variations
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it will drop one day
Load = Callable[[Family], Pipeline]
OVER_AN_IMAGE = [
    "DeepFloyd IF", "FLUX.1 dev", "FLUX.1 schnell", "Kandinsky 2.1", "Kandinsky 2.2", "Kandinsky 3", "Qwen-Image",
    "Stable Diffusion 3", "Z-Image",
]  # fmt: skip
OVER_A_PART = [name for name in OVER_AN_IMAGE if "Kandinsky" not in name]


def picture(size: tuple[int, int]) -> Image.Image:
    """An image of shades."""
    width, height = size
    across = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray((across * np.array([1.0, 0.6, 0.2])).astype(np.uint8))


def part(size: tuple[int, int]) -> Image.Image:
    """A mask whose left half is to change."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, : size[0] // 2] = 255
    return Image.fromarray(mask)


def by_hand(pipeline: Pipeline, family: Family, **images: Any) -> np.ndarray:
    """What diffusers draws over an image, by its own pipeline for that."""
    auto: Any = import_module("diffusers")
    assert isinstance(pipeline.drawer, WrappedDrawer)
    kind = auto.AutoPipelineForInpainting if "mask_image" in images else auto.AutoPipelineForImage2Image
    twin = kind.from_pipe(pipeline.drawer.adapted.pipe)
    twin.set_progress_bar_config(disable=True)
    # A model's scale of guidance is that of its pipeline for text, whatever is drawn.
    scale = {"guidance_scale": pipeline.defaults()["guidance_scale"]}
    given = {"height": 32, "width": 32, **scale, **family.by_hand, "num_inference_steps": 4, "strength": 0.75, **images}
    taken = inspect.signature(type(twin).__call__).parameters
    given = {name: value for name, value in given.items() if name in taken}
    made = twin(prompt="a red cat", generator=torch.Generator("cpu").manual_seed(3), **given)
    return np.asarray(made.images[0].convert("RGB"))


def asked(family: Family) -> dict[str, Any]:
    return {**family.settings, "steps": 4, "strength": 0.75, "seed": 3, "progress": False}


def test_the_families_here_are_those_that_diffusers_has_such_pipelines_of(loaded: Load):
    taken = {one.name: loaded(one).traits.takes or () for one in families()}
    assert sorted(name for name, takes in taken.items() if "image" in takes) == sorted(OVER_AN_IMAGE)
    assert sorted(name for name, takes in taken.items() if "mask" in takes) == sorted(OVER_A_PART)


@pytest.mark.parametrize("name", OVER_AN_IMAGE)
def test_an_image_is_drawn_over_as_diffusers_does(name: str, loaded: Load, tmp_path: Path):
    family, states = family_named(name), []
    pipeline, image = loaded(family), picture((64, 64) if name == "Kandinsky 3" else (32, 32))
    image.save(tmp_path / "begin.png")
    drawn = pipeline("a red cat", image=tmp_path / "begin.png", callback=states.append, **asked(family))
    assert np.array_equal(np.asarray(drawn), by_hand(pipeline, family, image=image))
    without = {name: value for name, value in asked(family).items() if name != "strength"}
    assert not np.array_equal(np.asarray(drawn), np.asarray(pipeline("a red cat", **without)))
    assert [state.step for state in states] == list(range(1, states[-1].steps + 1))
    drawn.save(tmp_path / "drawn.png")
    made = read_made(tmp_path / "drawn.png").request
    again = pipeline(made.pop("prompt"), progress=False, **made)
    assert np.array_equal(np.asarray(again), np.asarray(drawn))


@pytest.mark.parametrize("name", OVER_A_PART)
def test_a_part_of_an_image_is_drawn_over_as_diffusers_does(name: str, loaded: Load):
    family, image, mask = family_named(name), picture((32, 32)), part((32, 32))
    pipeline = loaded(family)
    drawn = pipeline("a red cat", image=image, mask=mask, **asked(family))
    assert np.array_equal(np.asarray(drawn), by_hand(pipeline, family, image=image, mask_image=mask))


def test_a_part_of_an_image_is_drawn_over_by_the_inpainting_network_of_kandinsky(loaded: Load, tmp_path: Path):
    family, image, mask = family_named("Kandinsky 2.2"), picture((32, 32)), part((32, 32))
    with pytest.raises(ValueError, match="mask is not for this model"):
        loaded(family)("a red cat", image=image, mask=mask, **asked(family))
    build_22(in_channels=9).save_pretrained(tmp_path)
    pipeline = Pipeline.from_pretrained(tmp_path, device="cpu", dtype="fp32")
    given = {name: value for name, value in asked(family).items() if name != "strength"}  # it takes none
    drawn = pipeline("a red cat", image=image, mask=mask, **given)
    assert np.array_equal(np.asarray(drawn), by_hand(pipeline, family, image=image, mask_image=mask))
    with pytest.raises(ValueError, match=r"this model draws over a part of an image: give both \(--image, --mask\)"):
        pipeline("a red cat", **given)


def test_an_image_of_another_size_is_scaled_and_says_the_size(loaded: Load):
    pipeline = loaded(family_named("Stable Diffusion 3"))
    given = asked(family_named("Stable Diffusion 3"))
    assert pipeline("a red cat", image=picture((48, 32)), **given).size == (48, 32)
    assert pipeline("a red cat", image=picture((48, 32)), height=32, width=32, **given).size == (32, 32)


@pytest.mark.parametrize("name", ["AuraFlow", "Sana"])
def test_a_family_that_diffusers_has_no_such_pipeline_of_says_so(name: str, loaded: Load):
    family = family_named(name)
    with pytest.raises(ValueError, match="image is not for this model"):
        loaded(family)("a red cat", seed=3, image=picture((32, 32)), progress=False, **family.settings)


def test_no_network_is_loaded_twice(loaded: Load):
    pipeline = loaded(family_named("Stable Diffusion 3"))
    assert isinstance(pipeline.drawer, WrappedDrawer)
    forms = pipeline.drawer.adapted.forms
    own = pipeline.drawer.adapted.pipe.components
    for form in (forms["image"], forms["mask"]):
        assert all(part is own[name] for name, part in form.pipe.components.items())


def test_variations_of_an_image_are_drawn_from_it_alone(tmp_path: Path):
    build_variations().save_pretrained(tmp_path)
    pipeline = Pipeline.from_pretrained(tmp_path, device="cpu", dtype="fp32")
    assert isinstance(pipeline.drawer, WrappedDrawer)
    pipe, image = pipeline.drawer.adapted.pipe, picture((32, 32))
    steps = {"decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2}
    made = pipe(image=image, generator=torch.Generator("cpu").manual_seed(3), **steps)
    given: Any = {"seed": 3, "steps": 2, "arguments": {"super_res_num_inference_steps": 2}, "progress": False}
    assert np.array_equal(np.asarray(pipeline("", image=image, **given)), np.asarray(made.images[0]))
    large = pipeline("", image=picture((64, 64)), **given)
    assert large.size == (32, 32), "it draws at one size alone"
    with pytest.raises(ValueError, match=r"this model draws from an image: give one \(--image\)"):
        pipeline("", **given)
    with pytest.warns(UserWarning, match="prompt has no effect"):
        pipeline("a red cat", image=image, **given)
