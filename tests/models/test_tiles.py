import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genpipe.models.tiles import over_tiles


def enlarged(latents: Tensor) -> Tensor:
    return F.interpolate(latents[:, :3], scale_factor=2.0)


@pytest.mark.parametrize(("height", "width"), [(16, 17), (40, 16), (53, 31), (100, 20)])
def test_tiles_of_a_local_decoder_make_up_the_whole(height: int, width: int) -> None:
    """Blending weights add up to one everywhere, and every pixel comes from its own place."""
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(over_tiles(enlarged, latents, tile=16, factor=2), enlarged(latents), atol=1e-5)


def test_tiles_that_differ_are_blended_without_a_seam() -> None:
    count = iter(range(100))
    pixels = over_tiles(
        lambda z: torch.full((1, 3, 2 * z.shape[2], 2 * z.shape[3]), next(count) % 2 * 1.0),
        torch.zeros(1, 4, 40, 40),
        tile=16,
        factor=2,
    )
    steps = torch.cat([pixels.diff(dim=-1).flatten(), pixels.diff(dim=-2).flatten()]).abs()
    assert float(pixels.max() - pixels.min()) > 0.9  # the tiles do differ, by 1
    assert float(steps.max()) <= 0.3  # over an overlap of 8 pixels, where two ramps may meet


def test_tiling_bounds_what_the_decoder_sees() -> None:
    seen: list[tuple[int, ...]] = []

    def recorded(latents: Tensor) -> Tensor:
        seen.append(tuple(latents.shape[-2:]))
        return enlarged(latents)

    assert over_tiles(recorded, torch.zeros(1, 4, 70, 18), tile=20, factor=2).shape == (1, 3, 140, 36)
    assert set(seen) == {(20, 18)}
    over_tiles(recorded, torch.zeros(1, 4, 20, 18), tile=20, factor=2)
    assert seen[-1] == (20, 18)
    with pytest.raises(ValueError, match="tile 15 is too small: use 16 latent pixels or more"):
        over_tiles(recorded, torch.zeros(1, 4, 70, 18), tile=15, factor=2)
