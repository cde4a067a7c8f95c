"""Checkpoints whose U-Net is shown an image to edit, or a map of depth: what diffusers' pipelines draw with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from genpipe import Pipeline
from genpipe.checkpoints import save_checkpoint
from genpipe.models.unet import UNet
from tests.conftest import tiny_parts
from tests.pipeline.drawing import difference, draw, loaded, loaded_by_diffusers
from tests.pipeline.test_start import SAMPLERS, original

diffusers: Any = _diffusers
PROMPTS, SEEDS = ["make it a red cat", "a blue dog"], (5, 6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, channels in (("image", 8), ("depth", 5)):
        found[name] = tmp_path_factory.mktemp(name) / "checkpoint"
        parts = tiny_parts()
        torch.manual_seed(channels)
        parts["unet"] = UNet(replace(parts["unet"].config, in_channels=channels))
        save_checkpoint(found[name], **parts)
    return found


def theirs(folder: Path, kind: Any, sampler: str, components: dict[str, Any] | None = None, **given: Any) -> Any:
    base, config = loaded_by_diffusers(diffusers.StableDiffusionPipeline, folder, safety_checker=None)
    kept = ("vae", "text_encoder", "tokenizer", "unet")
    parts = {name: getattr(base, name) for name in kept} | (components or {})
    pipe = kind(**parts, scheduler=SAMPLERS[sampler](config))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    with torch.inference_mode():
        return pipe(PROMPTS, generator=generators, num_inference_steps=6, output_type="pil", **given).images


def ours(folder: Path, sampler: str, **given: Any) -> Any:
    pipe = loaded(folder)
    settings: Any = {"steps": 6, "sampler": sampler, "progress": False, **given}
    return pipe(PROMPTS, seeds=list(SEEDS), **settings)


def edited(folder: Path, sampler: str, **given: Any) -> Any:
    alone = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    image = [original(), original().rotate(180)]
    kind = diffusers.StableDiffusionInstructPix2PixPipeline
    return theirs(folder, kind, sampler, alone, image=image, negative_prompt=["fog"] * 2, **given)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("scale", "image_scale"), [(7.5, 1.5), (4.0, 1.0), (3.0, 2.5)])
def test_an_image_is_edited_as_diffusers_edits_it(
    folders: dict[str, Path], sampler: str, scale: float, image_scale: float
) -> None:
    expected = edited(folders["image"], sampler, guidance_scale=scale, image_guidance_scale=image_scale)
    pipe = loaded(folders["image"])
    settings: Any = {"steps": 6, "sampler": sampler, "guidance_scale": scale, "image_guidance_scale": image_scale}
    requests = [
        pipe.requests(prompt, seed=seed, image=image, negative_prompt="fog", **settings)[0]
        for prompt, seed, image in zip(PROMPTS, SEEDS, (original(), original().rotate(180)), strict=True)
    ]
    *_, last = pipe.stream(requests)
    for image, wanted in zip(pipe.decode(last.latents, requests), expected, strict=True):
        assert difference(image, wanted) <= 1
    other = draw(
        pipe, PROMPTS[0], image=original(), steps=6, sampler=sampler, guidance_scale=scale, negative_prompt="fog"
    )
    assert (difference(other, expected[0]) <= 1) == (image_scale == 1.5)  # the default


def test_without_guidance_the_image_is_shown_too(folders: dict[str, Path]) -> None:
    expected = edited(folders["image"], "ddim", guidance_scale=1.0)
    pipe = loaded(folders["image"])
    image = draw(pipe, PROMPTS[0], image=original(), steps=6, guidance_scale=1.0, sampler="ddim")
    assert difference(image, expected[0]) <= 1
    other = draw(pipe, PROMPTS[0], image=original().rotate(180), steps=6, guidance_scale=1.0, sampler="ddim")
    assert difference(image, other) > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_depth_is_shown_as_diffusers_shows_it(folders: dict[str, Path], sampler: str, strength: float) -> None:
    image, depth = original(), original(24, 40).convert("L")
    levels = torch.from_numpy(np.asarray(depth, dtype=np.float32))[None]
    expected = theirs(
        folders["depth"],
        diffusers.StableDiffusionDepth2ImgPipeline,
        sampler,
        {"depth_estimator": None, "feature_extractor": None},
        image=[image, image],
        depth_map=torch.cat([levels, levels]),
        strength=strength,
        guidance_scale=4.0,
    )
    found = ours(folders["depth"], sampler, image=image, depth=depth, strength=strength, guidance_scale=4.0)
    for one, wanted in zip(found, expected, strict=True):
        assert difference(one, wanted) <= 1


def test_depth_alone_is_enough_and_counts(folders: dict[str, Path]) -> None:
    pipe = loaded(folders["depth"])
    depth = original(24, 40)
    found = draw(pipe, depth=depth)
    assert difference(found, draw(pipe, depth=depth.rotate(180))) > 1
    flat = draw(pipe, depth=Image.new("L", (8, 8), 100), upscale=2, upscale_strength=0.5)
    assert flat.size == (64, 64)
    request = pipe.requests("a", seed=1, steps=2, depth=depth)[0]
    assert request.inputs_key != pipe.requests("a", seed=1, steps=2)[0].inputs_key


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("image", {}, "this checkpoint edits whole images: give an image"),
        ("image", {"image": original(), "mask": original()}, "without a mask"),
        ("image", {"image": original(), "prompt": "a AND b"}, "this checkpoint takes one instruction"),
        ("image", {"image": original(), "upscale": 2}, "draws no second pass"),
        ("depth", {"image": original()}, "is shown a map of depth: give one, white is near"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    folders: dict[str, Path], name: str, given: dict[str, Any], says: str
) -> None:
    pipe = loaded(folders[name])
    with pytest.raises(ValueError, match=says) as caught:
        draw(pipe, given.pop("prompt", "a"), **given)
    assert "\n" not in str(caught.value)


def test_what_another_model_takes_is_told(pipe: Pipeline, folders: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="image_guidance_scale is for models that edit by instruction"):
        draw(pipe, image=original(), image_guidance_scale=2.0, steps=2)
    with pytest.warns(UserWarning, match="depth is for models that are shown a map of it"):
        draw(pipe, depth=original(), steps=1)
    edits = Pipeline.from_pretrained(folders["image"], device="cpu", dtype="fp32")
    with pytest.warns(UserWarning, match="strength has no effect: this model draws every step"):
        draw(edits, image=original(), strength=0.5, steps=1)
