import pytest
import torch

from genpipe.scenes.places import FAR, LIGHTS, LOOK, OUTDOORS, SETTINGS
from genpipe.scenes.settings import FRONTS, PAINTERS, front, paint

SIZE = 32


def looks(n: int) -> torch.Tensor:
    return torch.rand(n, LOOK, generator=torch.Generator().manual_seed(0))


def test_every_setting_has_a_painter():
    assert tuple(PAINTERS) == SETTINGS
    assert set(FRONTS) <= set(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_an_image_for_every_look(setting: str):
    corners = torch.stack([torch.zeros(LOOK), torch.ones(LOOK), torch.full((LOOK,), 0.5)])
    image = paint(setting, torch.cat([corners, looks(3)]), SIZE)
    assert image.shape == (6, 3, SIZE, SIZE) and image.dtype == torch.float32
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert not torch.equal(image[0], image[1]) or setting == "white"


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_look_gives_the_same_image_in_any_batch(setting: str):
    together = paint(setting, looks(4), SIZE)
    alone = torch.cat([paint(setting, look[None], SIZE) for look in looks(4)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_night_and_space_are_dark_and_white_is_white():
    middle = torch.full((1, LOOK), 0.5)
    assert float(paint("space", middle, SIZE).median()) < 0.08
    assert float(paint("night", middle, SIZE).mean()) < 0.15
    assert float(paint("white", middle, SIZE).min()) == 1.0
    assert float(paint("snow", middle, SIZE).mean()) > 0.8


def test_waves_come_before_what_is_at_sea():
    hidden = front("sea", looks(2), SIZE)
    assert hidden is not None
    colour, cover = hidden
    assert colour.shape == (2, 3, SIZE, SIZE) and cover.shape == (2, 1, SIZE, SIZE)
    assert float(cover[:, :, : SIZE // 2].max()) == 0 and float(cover[:, :, -2:].min()) == 1
    assert front("beach", looks(1), SIZE) is None


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_light_of_the_day_is_seen_outdoors_only(setting: str):
    light = torch.arange(len(LIGHTS))
    images = paint(setting, torch.full((len(LIGHTS), LOOK), 0.5), SIZE, light)
    assert torch.equal(images[:1], paint(setting, torch.full((1, LOOK), 0.5), SIZE)), "by day where nothing is said"
    if setting not in OUTDOORS:
        assert all(torch.equal(image, images[0]) for image in images)
        return
    assert all(float((image - images[0]).abs().mean()) > 0.003 for image in images[1:])
    night = images[LIGHTS.index("night")]
    assert float(night.mean()) < 0.5 * float(images[0].mean()) and float(night.max()) > 0.7, "dark, with stars"


@pytest.mark.parametrize("setting", SETTINGS)
def test_far_things_are_seen_and_leave_most_of_a_setting_as_it_is(setting: str):
    images = paint(setting, torch.full((FAR, LOOK), 0.5), 64, distant=torch.arange(FAR))
    assert torch.equal(images[:1], paint(setting, torch.full((1, LOOK), 0.5), 64))
    for image in images[1:]:
        assert 0.004 < float((image != images[0]).any(0).float().mean()) < 0.7


def test_the_desert_has_a_sun_of_its_own_by_plain_day_only():
    west, east = (torch.full((len(LIGHTS), LOOK), 0.5) for _ in range(2))
    west[:, 1], east[:, 1] = 0.0, 1.0  # where that sun is, and nothing else
    images = [paint("desert", look, SIZE, torch.arange(len(LIGHTS))) for look in (west, east)]
    moved = [not torch.equal(one, other) for one, other in zip(*images, strict=True)]
    assert moved == [light == "day" for light in LIGHTS]


def test_light_and_far_things_are_of_each_image_alone():
    lights, distant = torch.tensor([4, 0, 2, 5]), torch.tensor([0, 1, 2, 1])
    together = paint("sea", looks(4), SIZE, lights, distant)
    alone = [paint("sea", looks(4)[i : i + 1], SIZE, lights[i : i + 1], distant[i : i + 1]) for i in range(4)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
