"""Parts of images that are drawn anew, wider images, and what stays of them byte for byte."""

from pathlib import Path
from typing import Any

import diffusers as _diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from genpipe.pipeline import Pipeline
from genpipe.pipeline.originals import Originals
from genpipe.request import Request
from tests.pipeline.drawing import difference, draw
from tests.pipeline.test_start import SAMPLERS, close, masked, original, ours, theirs

diffusers: Any = _diffusers


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def photo(width: int, height: int) -> Image.Image:
    """An image whose sides are multiples of nothing."""
    random = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(random)


def spot(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def test_a_wider_image_has_the_old_one_in_it_byte_for_byte(pipe: Pipeline) -> None:
    image = original(48, 32)
    drawn = draw(pipe, image=image, outpaint={"left": 16, "bottom": 8})
    assert drawn.size == (64, 40)
    assert np.array_equal(levels(drawn)[:32, 16:], levels(image))
    repeated = np.pad(levels(image), ((0, 8), (16, 0), (0, 0)), mode="edge")
    assert np.abs(levels(drawn) - repeated)[:, :12].mean() > 5 and np.abs(levels(drawn) - repeated)[36:].mean() > 5


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, None])
def test_a_wider_image_is_drawn_as_diffusers_fills_its_canvas(
    tiny_checkpoint: Path, sampler: str, strength: float | None
) -> None:
    image = original(48, 32)
    canvas = Image.fromarray(np.pad(np.asarray(image), ((0, 0), (8, 16), (0, 0)), mode="edge"))
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (8, 0, 56, 32))
    expected = theirs(
        tiny_checkpoint, diffusers.StableDiffusionInpaintPipeline, sampler, image=[canvas] * 2, mask_image=[mask] * 2,
        strength=strength or 1.0, height=32, width=72,
    )  # fmt: skip
    found = ours(tiny_checkpoint, sampler, image=image, outpaint="left=8,right=16", strength=strength)
    assert close(found, expected)


def test_a_mask_and_transparency_are_kept_in_a_wider_image(pipe: Pipeline) -> None:
    image, mask = original(48, 32), masked(original(48, 32))
    drawn = draw(pipe, image=image, mask=mask, outpaint={"right": 16})
    stays = np.asarray(mask) == 0
    assert np.array_equal(levels(drawn)[:, :48][stays], levels(image)[stays])
    assert np.abs(levels(drawn)[:, :48] - levels(image))[~stays].mean() > 5
    transparent = image.copy()
    transparent.putalpha(mask.point(list(range(255, -1, -1))))
    assert difference(drawn, draw(pipe, image=transparent, outpaint={"right": 16})) == 0


@pytest.mark.parametrize("size", [(50, 35), (49, 33), (55, 39)])
@pytest.mark.parametrize("blur", [0, 3])
def test_images_of_any_size_keep_it_and_every_byte_outside_the_mask(
    pipe: Pipeline, size: tuple[int, int], blur: int
) -> None:
    image, mask = photo(*size), spot(size, (11, 7, 33, 25))
    drawn = draw(pipe, image=image, mask=mask, mask_blur=blur, strength=1.0)
    stays = np.asarray(mask) == 0
    assert drawn.size == size and np.array_equal(levels(drawn)[stays], levels(image)[stays])
    assert np.abs(levels(drawn) - levels(image))[~stays].mean() > 5
    wide = draw(pipe, image=image, outpaint={"right": 9}, mask_blur=blur)
    assert wide.size == (size[0] + 9, size[1]) and np.array_equal(levels(wide)[:, : size[0]], levels(image))


def test_a_size_that_is_asked_for_is_given(pipe: Pipeline) -> None:
    image = photo(50, 35)
    drawn = draw(pipe, image=image, mask=spot((50, 35), (10, 10, 30, 30)), width=64, height=32)
    assert drawn.size == (64, 32)
    scaled = levels(image.resize((64, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(levels(drawn)[:, :10], scaled[:, :10])


def test_a_masked_part_is_drawn_alone_at_the_whole_size_and_put_back(pipe: Pipeline) -> None:
    image, mask = photo(150, 110), spot((150, 110), (60, 40, 76, 56))
    drawn = draw(pipe, image=image, mask=mask, only_masked=8, mask_blur=0, strength=1.0, width=64, height=64)
    stays = np.asarray(mask) == 0
    assert drawn.size == (150, 110) and np.array_equal(levels(drawn)[stays], levels(image)[stays])
    box = (52, 32, 84, 64)
    enlarged = [each.crop(box).resize((64, 64), Image.Resampling.LANCZOS) for each in (image, mask)]
    alone = draw(pipe, image=enlarged[0], mask=enlarged[1], mask_blur=0, strength=1.0)
    back = levels(alone.resize((32, 32), Image.Resampling.LANCZOS))
    inner = (slice(12, 20), slice(12, 20))  # scaling mixes what lies at the edge of the mask
    assert np.abs(levels(drawn.crop(box)) - back)[inner].max() <= 1
    assert np.abs(levels(image.crop(box)) - back)[inner].mean() > 5
    # Without a size it is the model's own.
    (request,) = pipe.requests("a", seed=1, steps=2, image=image, mask=mask, only_masked=8)
    assert (request.width, request.height) == (32, 32)


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (48, 96)])
def test_the_part_around_a_mask_is_that_of_diffusers(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        left, top = (int(n) for n in generator.integers(60, 120, 2))
        width, height = (int(n) for n in generator.integers(4, 40, 2))
        mask = spot((240, 200), (left, top, min(left + width, 180), min(top + height, 150)))
        request = Request("a", seed=1, steps=1, guidance_scale=1, width=size[0], height=size[1],
                          image=photo(240, 200), mask=mask, only_masked=6)  # type: ignore[arg-type] # fmt: skip
        found = Originals.of([request], 8)
        assert found is not None
        theirs = VaeImageProcessor.get_crop_region(mask, size[0], size[1], pad=6)
        assert np.abs(np.array(found.each[0].box) - np.array(theirs)).max() <= 1


def test_a_part_at_a_corner_stays_inside(pipe: Pipeline) -> None:
    image = photo(60, 90)
    for box in ((0, 0, 4, 90), (56, 86, 60, 90), (0, 0, 60, 90)):
        mask = spot(image.size, box)
        drawn = draw(pipe, image=image, mask=mask, only_masked=500, mask_blur=2, steps=2)
        stays = np.asarray(mask) == 0
        assert drawn.size == (60, 90) and np.array_equal(levels(drawn)[stays], levels(image)[stays])


def test_images_of_a_batch_keep_their_own_sizes(pipe: Pipeline) -> None:
    images = [photo(50, 35), photo(51, 34)]
    requests = [
        pipe.requests("a", seed=k, steps=2, image=image, mask=spot(image.size, (8, 8, 30, 30)))[0]
        for k, image in enumerate(images)
    ]
    with torch.inference_mode():
        *_, last = pipe.stream(requests)
    assert [image.size for image in pipe.decode(last.latents, requests)] == [(50, 35), (51, 34)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"outpaint": "left"}, "outpaint must be pixels for left, top, right or bottom, not 'left'"),
        ({"outpaint": {"left": -8}}, "outpaint must be a whole number from 0 to 8192, not -8"),
        ({"outpaint": (0, 0, 0, 0)}, "outpaint must be pixels"),
        ({"outpaint": {"up": 8}}, "outpaint must be pixels"),
        ({"only_masked": -1}, "only_masked must be a whole number from 0 to 1024"),
        ({"only_masked": 8}, "only_masked draws the masked part of an image: give a mask"),
        ({"outpaint": {"left": 9000}}, "outpaint must be a whole number from 0 to 8192"),
        ({"outpaint": {"left": 8190}}, "8192"),
    ],
)
def test_mistakes_are_one_line(pipe: Pipeline, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        draw(pipe, image=original(), **given)
    assert "\n" not in str(caught.value)


def test_what_has_no_effect_without_an_image_is_told(pipe: Pipeline) -> None:
    for name, value in (("outpaint", {"left": 8}), ("only_masked", 8)):
        with pytest.warns(UserWarning, match=f"{name} has no effect without image"):
            draw(pipe, steps=1, **{name: value})
