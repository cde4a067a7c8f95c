"""Images to begin from: what diffusers' img2img and inpainting pipelines draw of the same images, seeds and weights."""

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
from genpipe.request import Request
from tests.conftest import tiny_parts
from tests.pipeline.drawing import draw, loaded, loaded_by_diffusers

diffusers: Any = _diffusers
SAMPLERS = {
    "ddim": lambda config: diffusers.DDIMScheduler.from_config(config),
    "euler_a": lambda config: diffusers.EulerAncestralDiscreteScheduler.from_config(config),
    "dpmpp_2m_karras": lambda config: diffusers.DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
}


def original(width: int = 48, height: int = 32) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def masked(image: Image.Image) -> Image.Image:
    """White in the middle."""
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (image.width // 4, image.height // 4, 3 * image.width // 4, 3 * image.height // 4))
    return mask


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose U-Net is shown a mask and what stays of the image."""
    folder = tmp_path_factory.mktemp("inpainting") / "checkpoint"
    parts = tiny_parts()
    torch.manual_seed(3)
    parts["unet"] = UNet(replace(parts["unet"].config, in_channels=9))
    save_checkpoint(folder, **parts)
    return folder


def theirs(folder: Path, kind: Any, sampler: str, **given: Any) -> torch.Tensor:
    """The latents that diffusers ends with."""
    pipe, config = loaded_by_diffusers(kind, folder, safety_checker=None, requires_safety_checker=False)
    pipe.scheduler = SAMPLERS[sampler](config)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)]
    with torch.inference_mode():
        return pipe(
            ["a red cat", "a blue dog"],
            generator=generators,
            num_inference_steps=6,
            guidance_scale=4.0,
            output_type="latent",
            **given,
        ).images


def ours(folder: Path, sampler: str, **given: Any) -> torch.Tensor:
    pipe = loaded(folder)
    settings: Any = {"steps": 6, "guidance_scale": 4.0, "sampler": sampler, **given}
    requests = pipe.requests(["a red cat", "a blue dog"], seeds=[5, 6], **settings)
    return list(pipe.stream(requests))[-1].latents


def close(latents: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((latents - expected).abs().max() <= 2e-4 * expected.abs().max())


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_changed_as_diffusers_changes_it(tiny_checkpoint: Path, sampler: str, strength: float) -> None:
    image = original()
    expected = theirs(
        tiny_checkpoint, diffusers.StableDiffusionImg2ImgPipeline, sampler, image=[image, image], strength=strength
    )
    latents = ours(tiny_checkpoint, sampler, image=image, strength=strength)
    assert latents.shape == (2, 4, 8, 12) and close(latents, expected)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_part_is_changed_as_diffusers_changes_it(
    tiny_checkpoint: Path, inpainting: Path, sampler: str, strength: float, channels: int
) -> None:
    image, folder = original(), tiny_checkpoint if channels == 4 else inpainting
    expected = theirs(
        folder,
        diffusers.StableDiffusionInpaintPipeline,
        sampler,
        image=[image, image],
        mask_image=[masked(image), masked(image)],
        strength=strength,
        height=image.height,
        width=image.width,
    )
    latents = ours(folder, sampler, image=image, mask=masked(image), strength=strength)
    assert close(latents, expected)


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")


@pytest.mark.parametrize("blur", [0, 3])
def test_what_is_not_masked_stays_byte_for_byte(pipe: Pipeline, blur: int) -> None:
    image = original()
    drawn = np.asarray(draw(pipe, image=image, mask=masked(image), strength=1.0, mask_blur=blur))
    stays = np.asarray(masked(image)) == 0
    assert np.array_equal(drawn[stays], np.asarray(image)[stays])
    assert np.abs(drawn.astype(int) - np.asarray(image))[~stays].mean() > 5


def test_what_is_transparent_is_the_mask(pipe: Pipeline) -> None:
    image = original()
    transparent = image.copy()
    transparent.putalpha(masked(image).point(list(range(255, -1, -1))))
    assert np.array_equal(
        np.asarray(draw(pipe, image=transparent)), np.asarray(draw(pipe, image=image, mask=masked(image)))
    )


def test_an_image_costs_its_share_of_the_steps(pipe: Pipeline) -> None:
    steps = []
    draw(pipe, image=original(), steps=10, strength=0.3, callback=lambda state: steps.append(state.steps))
    assert steps == [3] * 3


def test_an_image_of_a_batch_is_what_it_is_alone(pipe: Pipeline) -> None:
    images = [original(), original().rotate(180)]
    requests = [pipe.requests("a", seed=k, steps=3, image=image)[0] for k, image in enumerate(images)]
    together = list(pipe.stream(requests))[-1].latents
    for k, request in enumerate(requests):
        assert (list(pipe.stream([request]))[-1].latents[0] - together[k]).abs().max() < 1e-4


def test_a_file_is_known_by_its_content_and_replayed_only_if_it_is_the_same(tmp_path: Path) -> None:
    original().save(tmp_path / "a.png")
    original().save(tmp_path / "b.png")
    base: Any = {"seed": 1, "steps": 2, "guidance_scale": 1.0, "height": 8, "width": 8}
    request = Request("a", image=tmp_path / "a.png", **base)  # type: ignore[arg-type]
    assert request == Request("a", image=tmp_path / "b.png", **base)  # type: ignore[arg-type]
    made = request.to_dict()
    assert Request.from_dict(made) == request
    original(16).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"image '.*' .*has changed since \(sha256 \w{12}"):
        Request.from_dict(made)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"cannot be read: No such file .* \(it had sha256 \w{12}…\): give its file"):
        Request.from_dict(made)
    held = Request("a", image=original(), **base)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image was given from memory .*: give its file with --image"):
        Request.from_dict(held.to_dict())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"image": "nowhere.png"}, "image 'nowhere.png' cannot be read"),
        ({"image": 3}, "image must be an image file or a PIL image, not 3"),
        ({"mask": original()}, "give the image, too"),
        ({"image": original(), "strength": 0}, "strength must be above 0"),
        ({"image": original(), "strength": float("nan")}, "strength must be a number from 0 to 1, not nan"),
        ({"image": original(), "strength": 0.1, "steps": 2}, "is not one whole step: use at least 0.5"),
        ({"image": original(), "mask": original(16)}, "mask is 16x32 where the image is 48x32: make them one size"),
        ({"image": original(), "mask": Image.new("L", (48, 32))}, "nothing to change, it is all black"),
    ],
)
def test_mistakes_are_one_line(pipe: Pipeline, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        draw(pipe, **given)
    assert says.replace("'nowhere.png'", "") in str(caught.value).replace(f"'{Path.cwd() / 'nowhere.png'}'", "")
    assert "\n" not in str(caught.value)


def test_an_inpainting_checkpoint_wants_an_image_and_a_mask(inpainting: Path) -> None:
    pipe = Pipeline.from_pretrained(inpainting, device="cpu", dtype="fp32")
    with pytest.raises(ValueError, match="paints parts of images: give an image and a mask"):
        draw(pipe, image=original())


def test_a_strength_without_an_image_is_told(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="strength has no effect without image"):
        draw(pipe, strength=0.5, steps=1)
