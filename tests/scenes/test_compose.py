import math
import random

import numpy as np
import pytest
import torch

from genpipe.scenes import COLOURS, SETTINGS, atlas, canonical, names, sample_batch
from genpipe.scenes.compose import Composer, tint
from genpipe.scenes.places import LOOK
from genpipe.scenes.settings import paint
from genpipe.scenes.world import Placed, Scene

SIZE = 48
MIDDLE = (0.5,) * LOOK


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(size=SIZE)


def placed(name: str, x: float, y: float, scale: float, **more) -> Placed:
    return Placed(name, atlas.variants(name)[0], x, y, scale, **more)


def bilinear(sprite: np.ndarray, u: float, v: float) -> np.ndarray:
    """The value of (4, S, S) at pixel coordinates (u, v), zero outside."""
    side, total = sprite.shape[1], np.zeros(4)
    for dx in (0, 1):
        for dy in (0, 1):
            i, j = math.floor(u) + dx, math.floor(v) + dy
            if 0 <= i < side and 0 <= j < side:
                total += sprite[:, j, i] * (1 - abs(u - i)) * (1 - abs(v - j))
    return total


def brute_force(composer: Composer, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The image in [0, 1] and what is seen of each object, pixel by pixel."""
    image = paint(scene.setting, torch.tensor([scene.look]), SIZE)[0].double().numpy().copy()
    seen = np.zeros((len(scene.objects), SIZE, SIZE))
    for k, o in enumerate(scene.objects):
        level = composer.level_for(o)
        sprite = composer.levels[level][o.sprite].double().numpy() / 255
        side, turn = sprite.shape[1], math.radians(o.rotation)
        for row in range(SIZE):
            for column in range(SIZE):
                dx, dy = (column + 0.5) / SIZE - o.x, (row + 0.5) / SIZE - o.y
                across = (math.cos(turn) * dx + math.sin(turn) * dy) / o.scale * (-1 if o.flip else 1)
                down = (-math.sin(turn) * dx + math.cos(turn) * dy) / o.scale
                value = bilinear(sprite, (across + 0.5) * side - 0.5, (down + 0.5) * side - 0.5)
                image[:, row, column] = image[:, row, column] * (1 - value[3]) + value[:3]
                seen[:k, row, column] *= 1 - value[3]
                seen[k, row, column] = value[3]
    return image, seen


def test_a_scene_is_what_compositing_pixel_by_pixel_gives(composer: Composer):
    objects = (
        placed("cat", 0.4, 0.5, 0.7, rotation=20.0),
        placed("dog", 0.65, 0.6, 0.45, flip=True),
        placed("star", 0.2, 0.2, 0.15),
    )
    scene = Scene("pair", "beach", MIDDLE, objects)
    image, seen = brute_force(composer, scene)
    cover = torch.zeros(1, 3, SIZE, SIZE)
    ours = composer.render([scene], cover)[0]
    assert np.abs((ours.numpy() + 1) / 2 - image).max() < 1e-4
    assert np.abs(cover[0].numpy() - seen).max() < 1e-4
    (truth,) = composer.truth([scene])[1]
    assert np.array_equal(truth.masks.numpy(), cover[0].numpy() >= 0.5)
    assert np.mean(truth.masks.numpy() != (seen >= 0.5)) < 1e-3


def test_the_truth_names_what_was_placed_and_where(composer: Composer):
    scene = Scene("pair", "space", MIDDLE, (placed("cat", 0.25, 0.5, 0.4, colour="red"), placed("owl", 0.75, 0.5, 0.4)))
    empty = Scene("place", "snow", MIDDLE, ())
    images, (truth, nothing) = composer.truth([scene, empty])
    assert images.shape == (2, 3, SIZE, SIZE)
    assert SETTINGS[truth.setting] == "space" and SETTINGS[nothing.setting] == "snow"
    assert [names()[i] for i in truth.concepts] == ["cat", "owl"]
    assert truth.colours.tolist() == [list(COLOURS).index("red"), -1]
    assert nothing.masks.shape == (0, SIZE, SIZE) and nothing.boxes.shape == (0, 4)
    for mask, (left, top, right, bottom) in zip(truth.masks, truth.boxes.int().tolist(), strict=True):
        inside = torch.zeros_like(mask)
        inside[top:bottom, left:right] = True
        assert bool((mask <= inside).all())
        assert all(bool(edge.any()) for edge in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]))
    assert truth.boxes[0, 2] <= SIZE / 2 <= truth.boxes[1, 0]


def test_a_batch_of_settings_alone_has_nothing_but_them(composer: Composer):
    scenes = [Scene("place", setting, MIDDLE, ()) for setting in ("snow", "sea")]
    images = composer.render(scenes)
    assert torch.allclose((images[0] + 1) / 2, paint("snow", torch.tensor([MIDDLE]), SIZE)[0], atol=1e-6)
    assert images.shape == (2, 3, SIZE, SIZE)


def test_waves_hide_the_lower_part_of_what_is_at_sea(composer: Composer):
    at_sea, on_land = (Scene("setting", s, MIDDLE, (placed("ship", 0.5, 0.6, 0.8),)) for s in ("sea", "beach"))
    wet, dry = (truth.masks[0] for truth in composer.truth([at_sea, on_land])[1])
    low = int(0.9 * SIZE)
    assert bool(dry[low:].any()) and not bool(wet[low:].any())
    assert torch.equal(wet[: SIZE // 2], dry[: SIZE // 2])


def test_a_scene_is_drawn_the_same_in_any_batch(composer: Composer):
    scenes = sample_batch(random.Random(3), 24)
    together = composer.render(scenes)
    assert together.dtype == torch.float32 and together.shape == (24, 3, SIZE, SIZE)
    assert float(together.abs().max()) <= 1
    alone = torch.cat([composer.render([scene]) for scene in scenes])
    assert torch.allclose(together, alone, atol=1e-5)
    backwards = composer.render(scenes[::-1]).flip(0)
    assert torch.allclose(together, backwards, atol=1e-5)


def test_a_small_object_is_an_average_of_its_pixels():
    """Without that, moving an object by a fraction of a pixel would change its colour."""
    small = Composer(size=16)
    scenes = [
        Scene("size", "white", MIDDLE, (placed("zebra", 0.5 + dx / 16, 0.5, 0.4),)) for dx in (0, 0.25, 0.5, 0.75)
    ]
    means = small.render(scenes).mean((1, 2, 3))
    assert float(means.max() - means.min()) < 0.01


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tint_gives_the_average_brightness_its_colour(colour: str):
    rgb = torch.tensor([COLOURS[colour]])
    grey = torch.full((1, 4, 2, 2), 0.5)
    grey[:, 3] = 1
    assert torch.allclose(tint(grey, rgb, torch.tensor([0.5]))[0, :3, 0, 0], rgb[0], atol=1e-6)


def test_a_tint_keeps_outlines_dark_highlights_light_and_the_shape_as_it_was():
    steps = torch.linspace(0, 1, 9)
    sprite = torch.cat([steps.view(1, 1, 1, 9).expand(1, 3, 1, 9), torch.ones(1, 1, 1, 9)], 1)
    red = tint(sprite, torch.tensor([COLOURS["red"]]), torch.tensor([0.5]))
    assert red[0, :3, 0, 0].tolist() == [0, 0, 0]
    assert bool((red[0, :3].sum(0).diff() > 0).all())
    assert torch.equal(red[:, 3], sprite[:, 3])
    half = tint(sprite * 0.5, torch.tensor([COLOURS["red"]]), torch.tensor([0.5]))
    assert torch.allclose(half, red * 0.5, atol=1e-6), "premultiplied in, premultiplied out"


def test_shades_are_darker_and_paler_and_keep_the_shape(composer: Composer):
    scenes = [Scene("bare", "white", MIDDLE, (placed("dog", 0.5, 0.5, 0.8, shade=shade),)) for shade in range(3)]
    images, (plain, dark, pale) = composer.truth(scenes)
    inside = plain.masks[0]
    levels = [float(image[:, inside].mean()) for image in images]
    assert levels[1] < levels[0] - 0.1 and levels[2] > levels[0] + 0.02
    assert torch.equal(plain.masks, dark.masks) and torch.equal(plain.masks, pale.masks)


def test_a_red_car_is_redder_than_a_blue_one(composer: Composer):
    def car(colour: str) -> Scene:
        return Scene("colour", "white", MIDDLE, (placed("car", 0.5, 0.5, 0.8, colour=colour),))

    red, blue = composer.render([car("red"), car("blue")]).mean((2, 3))
    assert red[0] > blue[0] + 0.1 and blue[2] > red[2] + 0.1


def test_a_pirate_ship_shows_its_dark_sails_its_skull_and_the_sea(composer: Composer):
    image = (composer.render([canonical("pirate ship")])[0] + 1) / 2
    sail = image[:, int(0.42 * SIZE) : int(0.6 * SIZE), int(0.3 * SIZE) : int(0.62 * SIZE)]
    assert float(sail.amin()) < 0.3 and float(sail.amin(0).amax()) > 0.85
    bottom = image[:, -2:].mean((1, 2))
    assert bottom[2] > bottom[0] + 0.3


def test_a_composer_too_small_to_draw_on_is_refused():
    with pytest.raises(ValueError, match="size 4"):
        Composer(size=4)
