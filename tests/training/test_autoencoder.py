from typing import Any

import pytest
import torch

from genpipe.models.vae import VAE, VAEConfig
from genpipe.training.autoencoder import LATENT_NOISE, autoencoder_loss, gradient_loss, psnr, standardise_latents
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
    loss = autoencoder_loss(lambda randomness: torch.rand(2, 3, 16, 16, generator=randomness.noise), decoder_only=True)
    loss(vae, 0, Randomness.at(0, 0)).backward()
    assert all(p.grad is None for p in vae.encoder.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.decoder.parameters())


class Flat(VAE):
    """Decodes everything to one level."""

    def decode(self, latents: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(latents), 3, 16, 16), 0.2)


def test_psnr_of_a_known_error(vae: VAE) -> None:
    assert psnr(Flat(vae.config), torch.zeros(2, 3, 16, 16)) == pytest.approx(
        20.0, abs=1e-4
    )  # an error of 0.1 on the scale 0 … 1
