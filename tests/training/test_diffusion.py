import random
from typing import Any

import pytest
import torch
from torch import Tensor

from genpipe.training.diffusion import LatentPool, TextToImage, diffusion_loss
from genpipe.training.loop import Randomness


class Numbers:
    """A sequence whose image i is a latent full of i, captioned "i"; counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, start: int, stop: int) -> tuple[Tensor, list]:
        self.asked += range(start, stop)
        latents = torch.arange(start, stop, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, 1)
        return latents, [lambda rng, i=i: str(i) for i in range(start, stop)]


def window(pool: LatentPool, step: int) -> set[int]:
    latents, captions = pool.draw(step, 600, random.Random(step))
    assert latents[:, 0, 0, 0].tolist() == [float(caption) for caption in captions]
    return {int(caption) for caption in captions}


def test_the_window_moves_on_and_each_image_is_encoded_once() -> None:
    source = Numbers()
    pool = LatentPool(source, initial=8, fresh=4, capacity=16)
    assert window(pool, 0) == set(range(8))
    assert window(pool, 1) == set(range(12))
    assert window(pool, 5) == set(range(12, 28))
    assert source.asked == sorted(set(source.asked))


def test_a_pool_that_starts_late_holds_what_an_old_one_holds() -> None:
    old, new = (
        LatentPool(Numbers(), initial=8, fresh=4, capacity=16),
        LatentPool(Numbers(), initial=8, fresh=4, capacity=16),
    )
    for step in range(20):
        kept = old.draw(step, 6, random.Random(step))
    late = new.draw(19, 6, random.Random(19))
    assert torch.equal(kept[0], late[0])
    assert kept[1] == late[1]


class Echo(torch.nn.Module):
    """A model that knows the true velocity of zero latents, and is off by `error`."""

    def __init__(self, squared: Tensor, error: float) -> None:
        super().__init__()
        self.squared, self.error = squared, error

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        square = self.squared[timestep][:, None, None, None]
        return square.sqrt() * noisy / (1 - square).sqrt() + self.error  # of latents that are 0


class Tokens:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]):
        self.texts += texts
        return type("Tokens", (), {"ids": [[0, 1]] * len(texts)})


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_the_loss_is_the_weighted_square_of_the_velocity_error(error: float) -> None:
    squared = torch.tensor([0.9, 0.5, 0.1, 0.0])
    pool = LatentPool(lambda a, b: (torch.zeros(b - a, 2, 4, 4), [lambda rng: "x"] * (b - a)), initial=4, capacity=4)
    loss = diffusion_loss(pool, Tokens(), squared.tolist(), batch=4000, gamma=5.0)  # type: ignore[arg-type]
    # SNRs 9, 1, 1/9, 0: min(1, 5 / (SNR + 1)) is 0.5 once, then 1
    expected = error**2 * (0.5 + 1 + 1 + 1) / 4
    assert loss(Echo(squared, error), 0, Randomness.at(0, 0)).item() == pytest.approx(expected, rel=0.05, abs=1e-9)


def test_captions_are_dropped_at_the_stated_share() -> None:
    tokens = Tokens()
    pool = LatentPool(lambda a, b: (torch.zeros(b - a, 2, 1, 1), [lambda rng: "x"] * (b - a)), initial=4, capacity=4)
    loss = diffusion_loss(pool, tokens, [0.9, 0.1], batch=4000, caption_dropout=0.1)  # type: ignore[arg-type]
    loss(Echo(torch.tensor([0.9, 0.1]), 0.0), 0, Randomness.at(0, 0))
    assert tokens.texts.count("") == pytest.approx(400, abs=60)


def test_the_two_networks_are_wired_as_in_the_pipeline() -> None:
    from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
    from genpipe.models.unet import UNet
    from genpipe.models.unet_config import UNetConfig

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text_encoder = TextEncoder(TextEncoderConfig(vocab_size=10, max_position_embeddings=4, **shape))
    levels: dict[str, Any] = {name: (True,) for name in ("attention", "attention_up")}
    levels |= {"layers": (1,), "depth": (1,), "heads": (2,), "only_cross": (False,)}
    unet = UNet(UNetConfig(channels=(8,), norm_groups=4, context_channels=16, **levels))
    model = TextToImage(text_encoder, unet)
    x, t, ids = torch.randn(2, 4, 4, 4), torch.tensor([1.0, 900.0]), torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    output = model(x, t, ids)
    assert torch.equal(output, unet(x, t, text_encoder(ids).context))
    output.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_fresh_weights_predict_nothing_and_every_parameter_can_learn() -> None:
    from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
    from genpipe.models.unet import UNet
    from genpipe.models.unet_config import UNetConfig

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text_encoder = TextEncoder(
        TextEncoderConfig(vocab_size=10, max_position_embeddings=4, num_attention_heads=2, **shape)
    )
    levels: dict[str, Any] = {name: (True,) for name in ("attention", "attention_up")}
    levels |= {"layers": (1,), "depth": (1,), "heads": (2,), "only_cross": (False,)}
    model = TextToImage(text_encoder, UNet(UNetConfig(channels=(8,), norm_groups=4, context_channels=16, **levels)))
    model.initialise()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 2, 4, 4, 4, generator=generator)
    t, ids = torch.tensor([1.0, 900.0]), torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    assert model(x, t, ids).abs().max() == 0
    for _ in range(4):  # zeros let gradients through from the end backwards, a layer a step
        optimizer.zero_grad()
        (model(x, t, ids) - target).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_a_window_that_holds_all_images_stops_and_encodes_each_once() -> None:
    source = Numbers()
    pool = LatentPool(source, initial=8, fresh=4, capacity=16, period=10)
    assert [window(pool, step) for step in range(3)] == [set(range(8)), set(range(10)), set(range(10))]
    assert source.asked == list(range(10))
    few = LatentPool(source, initial=8, fresh=4, capacity=16, period=3)
    assert window(few, 0) == set(range(3))
    many = LatentPool(Numbers(), initial=8, fresh=4, capacity=16, period=17)  # goes on, into the next round
    assert window(many, 5) == set(range(12, 28))
