from typing import Any

import pytest
import torch

from genpipe.models.vae import VAE, VAEConfig
from genpipe.training.autoencoder import (
    LATENT_NOISE,
    NEAR,
    SQUARES,
    autoencoder_loss,
    gradient_loss,
    growing_loss,
    grown,
    psnr,
    standardise_latents,
)
from genpipe.training.loop import Randomness


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    config = VAEConfig(channels=(8, 16), layers=1, norm_groups=4, scaling_factor=0.7, shift_factor=0.3)
    return VAE(config).requires_grad_(False)


def test_standardising_puts_each_channel_on_the_unit_scale_and_decodes_the_same(vae: VAE) -> None:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = vae.decode(vae.scale(vae.encode(pixels)[0]))
    standardise_latents(vae, pixels)
    latents = vae.scale(vae.encode(pixels)[0])
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-4
    assert (vae.decode(latents) - before).abs().max() < 1e-4


def test_standardising_states_the_variance_that_training_used(vae: VAE) -> None:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scale = vae.scale(vae.encode(pixels)[0]).std(dim=(0, 2, 3))
    standardise_latents(vae, pixels)
    _, logvar = vae.encode(pixels)
    posterior = (0.5 * logvar).exp() * vae.config.scaling_factor  # in the denoiser's scale
    assert torch.allclose(posterior, (LATENT_NOISE / scale)[:, None, None].expand_as(posterior[0]), rtol=1e-4)


def test_gradient_loss_against_a_hand_count() -> None:
    target = torch.zeros(1, 1, 2, 2)
    image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert gradient_loss(image, target) == 1.0  # both rows step by one, no column does


def test_a_decoder_only_loss_leaves_the_encoder_without_gradients() -> None:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(channels=(8, 16), layers=1, norm_groups=4))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = autoencoder_loss(lambda randomness: pixels, vae.config, decoder_only=True)
    loss(vae, 0, Randomness.at(0, 0)).backward()
    assert all(p.grad is None for p in vae.encoder.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.decoder.parameters())


def test_a_grown_decoder_computes_on_the_old_maps_and_passes_them_on_enlarged(vae: VAE) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    maps: list[torch.Tensor] = []
    larger = grown(vae)
    for one in (vae, larger):
        one.decoder.norm_out.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
        one.decode(latents)
    before, after = maps
    enlarged = torch.nn.functional.interpolate(before, scale_factor=2.0, mode="nearest")
    assert torch.allclose(after, enlarged, atol=1e-5)
    assert larger.config.factor == 2 * vae.config.factor and larger.config.sample_size == 2 * vae.config.sample_size


def test_half_of_what_a_grown_autoencoder_draws_is_of_its_own_latents_and_half_of_those_of_before(vae: VAE) -> None:
    larger = grown(vae).requires_grad_(True)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    value = growing_loss(lambda randomness: pixels, vae)(larger, 0, Randomness.at(0, 0))
    value.backward()
    assert all(p.grad is None for p in vae.parameters())
    assert all(p.grad is not None for name, p in larger.named_parameters() if "to_moments" not in name)
    with torch.no_grad():
        noise = LATENT_NOISE * torch.randn(4, 4, 8, 8, generator=Randomness.at(0, 0).noise)
        halved = pixels.reshape(4, 3, 16, 2, 16, 2).mean((3, 5))
        own, before = larger.scale(larger.encode(pixels)[0]), vae.scale(vae.encode(halved)[0])
        of_own, of_before = larger.decode(own[:2] + noise[:2]), larger.decode(before[2:] + noise[2:])
        drawn = torch.cat([of_own, of_before])
        expected = (drawn - pixels).abs().mean() + 0.5 * gradient_loss(drawn, pixels)
        expected += SQUARES * (of_own - pixels[:2]).square().mean() + NEAR * (own[:2] - before[:2]).square().mean()
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_grown_encoder_learns_to_give_what_its_decoder_draws_the_image_from(vae: VAE) -> None:
    larger = grown(vae).requires_grad_(True)
    larger.decoder.requires_grad_(False)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    loss = growing_loss(lambda randomness: pixels, vae)
    optimizer = torch.optim.Adam(larger.encoder.parameters(), 3e-3)

    @torch.no_grad()
    def error() -> float:
        return float((larger.decode(larger.scale(larger.encode(pixels[:2])[0])) - pixels[:2]).abs().mean())

    before = error()
    for step in range(30):
        loss(larger, step, Randomness.at(0, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error() < 0.98 * before


class Flat(VAE):
    """Decodes everything to one level."""

    def decode(self, latents: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(latents), 3, 16, 16), 0.2)


def test_psnr_of_a_known_error(vae: VAE) -> None:
    assert psnr(Flat(vae.config), torch.zeros(2, 3, 16, 16)) == pytest.approx(
        20.0, abs=1e-4
    )  # an error of 0.1 on the scale 0 … 1
