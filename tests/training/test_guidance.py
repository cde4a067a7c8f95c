from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.training.diffusion import LatentPool, TextToImage, Wording
from genpipe.training.guidance import HIGHEST, distilled, guidance_loss
from genpipe.training.loop import Randomness

ALPHAS = [0.9, 0.5, 0.1, 0.0]


class Words:
    def __call__(self, texts: list[str]) -> SimpleNamespace:
        return SimpleNamespace(ids=[[1, 2, 3] if text else [0, 0, 0] for text in texts])


class Noise:
    """A sequence of images of noise."""

    def pixels(self, start: int, stop: int) -> Tensor:
        return torch.randn(stop - start, 4, 4, 4, generator=torch.Generator().manual_seed(start))

    def wording(self, index: int) -> Wording:
        return lambda rng: "x"


@pytest.fixture
def teacher() -> TextToImage:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text_encoder = TextEncoder(
        TextEncoderConfig(vocab_size=10, max_position_embeddings=4, num_attention_heads=2, **shape)
    )
    levels: dict[str, Any] = {name: (True,) for name in ("attention", "attention_up")}
    levels |= {"layers": (1,), "depth": (1,), "heads": (2,), "only_cross": (False,)}
    unet = UNet(UNetConfig(channels=(8,), norm_groups=4, context_channels=16, **levels))
    return TextToImage(text_encoder, unet).requires_grad_(False)


def loss_of(teacher: TextToImage, batch: int) -> Any:
    pool = LatentPool(Noise(), lambda pixels: pixels, initial=16, block=16)
    return guidance_loss(pool, Words(), ALPHAS, teacher.unet, batch=batch)  # type: ignore[arg-type]


def test_a_distilled_denoiser_begins_as_its_teacher_with_the_prompt(teacher: TextToImage) -> None:
    student = distilled(teacher.unet)
    x, t, context = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 900.0]), torch.randn(2, 3, 16)
    for scale in (0.0, 1.0, 5.0):
        assert torch.equal(student(x, t, context, guidance=torch.full((2,), scale)), teacher.unet(x, t, context))
    with pytest.raises(ValueError, match="takes the guidance scale already"):
        distilled(student)


def test_the_loss_is_the_distance_from_the_guided_velocity(teacher: TextToImage) -> None:
    """Of a student that gives the prompt's velocity at each scale, which is (w - 1) (cond - uncond) away."""
    loss, student = loss_of(teacher, 64), TextToImage(teacher.text_encoder, distilled(teacher.unet))
    latents, noise, alpha, sigma, weight, timestep, ids, scale, empty = loss.admit(
        loss.prepare(0, Randomness.at(0, 0)), 0, Randomness.at(0, 0)
    )
    assert ids.tolist() == [[1, 2, 3]] * 64 and 0 <= scale.min() < 1 and HIGHEST - 1 < scale.max() <= HIGHEST
    expected = []
    for i in range(64):
        noisy = (alpha[i] * latents[i] + sigma[i] * noise[i])[None]
        cond, uncond = (teacher(noisy, timestep[i : i + 1], each) for each in (ids[i : i + 1], empty))
        expected.append(weight[i] * ((scale[i] - 1) * (cond - uncond)).square().mean())
    found = loss(student, 0, Randomness.at(0, 0))
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4) and found > 0


def test_a_student_learns_what_guidance_does(teacher: TextToImage) -> None:
    loss, student = loss_of(teacher, 32), TextToImage(teacher.text_encoder, distilled(teacher.unet))
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(80):
        value = loss(student, step, Randomness.at(0, step))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert all(parameter.grad is None for parameter in teacher.parameters())
