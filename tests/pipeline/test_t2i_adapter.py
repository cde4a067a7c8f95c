"""T2I-Adapters: what diffusers' pipelines draw of the same images, seeds and weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
import torch
from diffusers.models.adapter import MultiAdapter, T2IAdapter
from torch import Tensor

from genpipe import Pipeline
from genpipe.checkpoints import save_checkpoint
from genpipe.models.unet import UNet
from tests.conftest import tiny_parts, tiny_xl_parts
from tests.pipeline.drawing import draw, loaded, loaded_by_diffusers
from tests.pipeline.test_control import SAMPLERS, close, picture

diffusers: Any = _diffusers
# Latents of 10 x 6 and 14 x 10: the levels below have odd numbers of them.
SIZES = {"sd1": (40, 24), "sdxl": (56, 40)}
ADAPTERS: dict[str, dict[str, Any]] = {
    "sd1": {"channels": [16, 32, 32], "downscale_factor": 4},
    "sdxl": {"channels": [16, 32, 32, 32], "downscale_factor": 8, "adapter_type": "full_adapter_xl"},
    "light": {"channels": [16, 32], "downscale_factor": 4, "adapter_type": "light_adapter"},
    "grey": {"channels": [16, 32, 32], "downscale_factor": 4, "in_channels": 1},
}
PIPES = {"sd1": "StableDiffusionAdapterPipeline", "sdxl": "StableDiffusionXLAdapterPipeline"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`folder(name)`: the model of three levels of a family, or an adapter that `ADAPTERS` describes, both by name."""
    root = tmp_path_factory.mktemp("adapters")

    def path(name: str) -> Path:
        if (root / name).exists():
            return root / name
        family, _, number = name.partition(" ")
        torch.manual_seed(len(number))
        if number:
            adapter: Any = T2IAdapter(**ADAPTERS[family])
            for parameter in adapter.parameters():
                if parameter.ndim > 1:
                    parameter.data.mul_(2)  # else its maps are too faint to be seen
            adapter.save_pretrained(root / name)
            return root / name
        parts = tiny_xl_parts() if family == "sdxl" else tiny_parts()
        attention = (False, True, True) if family == "sdxl" else (True, True, False)
        shape: Any = {"channels": (16, 32, 32), "layers": (1,) * 3, "heads": (2, 4, 4), "only_cross": (False,) * 3}
        shape |= {
            "attention": attention,
            "attention_up": attention,
            "depth": (1, 2, 2) if family == "sdxl" else (1,) * 3,
        }
        parts["unet"] = UNet(replace(parts["unet"].config, **shape))
        save_checkpoint(root / name, **parts)
        return root / name

    return path


@cache
def networks(paths: tuple[Path, ...]) -> Any:
    """Adapters of diffusers', as its pipelines take one or several."""
    found = [T2IAdapter.from_pretrained(path) for path in paths]
    return found[0] if len(found) == 1 else MultiAdapter(found)


def theirs(folder: Callable[[str], Path], family: str, adapters: list[str], sampler: str, **given: Any) -> Tensor:
    found = networks(tuple(folder(name) for name in adapters))
    more: Any = {"add_watermarker": False} if family == "sdxl" else {"safety_checker": None}
    pipe, config = loaded_by_diffusers(getattr(diffusers, PIPES[family]), folder(family), adapter=found, **more)
    pipe.scheduler = SAMPLERS[sampler](config)
    width, height = SIZES[family]
    with torch.inference_mode():
        return pipe(
            ["a red cat", "a blue dog"],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)],
            width=width,
            height=height,
            **{"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "latent", **given},
        ).images


def ours(folder: Callable[[str], Path], family: str, adapters: list[str], sampler: str, **given: Any) -> Tensor:
    pipe = loaded(folder(family), control_model=tuple(folder(name) for name in adapters))
    width, height = SIZES[family]
    settings: Any = {
        "steps": 5,
        "guidance_scale": 4.0,
        "sampler": sampler,
        "width": width,
        "height": height,
        **given,
    }
    requests = pipe.requests(["a red cat", "a blue dog"], seeds=[5, 6], **settings)
    latents = list(pipe.stream(requests))[-1].latents
    plain_settings: Any = {**settings, "control": ()}
    with pytest.warns(UserWarning, match="control_model has no effect without control"):
        plain = pipe.requests(["a red cat", "a blue dog"], seeds=[5, 6], **plain_settings)
    assert (list(pipe.stream(plain))[-1].latents - latents).abs().max() > 0.05  # else anything would agree
    return latents


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", PIPES)
def test_one_image_at_a_scale(folder: Callable[[str], Path], family: str, sampler: str) -> None:
    image, name = picture(1, *SIZES[family]), f"{family} a"
    expected = theirs(folder, family, [name], sampler, image=[image] * 2, adapter_conditioning_scale=0.8)
    assert close(ours(folder, family, [name], sampler, control={"image": image, "scale": 0.8}), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_images(folder: Callable[[str], Path], sampler: str) -> None:
    images, names = [picture(1, *SIZES["sd1"]), picture(2, *SIZES["sd1"])], ["sd1 a", "sd1 bb"]
    expected = theirs(
        folder, "sd1", names, sampler, image=[[one] * 2 for one in images], adapter_conditioning_scale=[0.8, 0.5]
    )
    control = [{"image": image, "scale": scale} for image, scale in zip(images, (0.8, 0.5), strict=True)]
    assert close(ours(folder, "sd1", names, sampler, control=control), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_the_first_steps(folder: Callable[[str], Path], sampler: str) -> None:
    image = picture(1, *SIZES["sdxl"])
    expected = theirs(folder, "sdxl", ["sdxl a"], sampler, image=[image] * 2, adapter_conditioning_factor=0.5)
    assert close(ours(folder, "sdxl", ["sdxl a"], sampler, control={"image": image, "end": 0.5}), expected)


def test_a_light_one_and_one_of_grey_images(folder: Callable[[str], Path]) -> None:
    image = picture(1, *SIZES["sd1"])
    expected = theirs(folder, "sd1", ["light a"], "ddim", image=[image] * 2)
    assert close(ours(folder, "sd1", ["light a"], "ddim", control=image), expected)
    expected = theirs(folder, "sd1", ["grey a"], "ddim", image=[image.convert("L")] * 2)
    assert close(ours(folder, "sd1", ["grey a"], "ddim", control=image), expected)


def test_sizes_that_it_cannot_see_are_refused(folder: Callable[[str], Path]) -> None:
    pipe = Pipeline.from_pretrained(folder("sdxl"), device="cpu", dtype="fp32", control_model=folder("sdxl a"))
    with pytest.raises(
        ValueError, match="width must be a multiple of 8 for this model, not 44: the nearest is 40 or 48"
    ):
        draw(pipe, control=picture(1), width=44, height=40)
