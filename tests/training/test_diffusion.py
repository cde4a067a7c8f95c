import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genpipe.training.diffusion import CaptionedSequence, LatentPool, TextToImage, Wording, diffusion_loss
from genpipe.training.loop import Budget, Loss, Randomness, choose_accelerator, fit


class Numbers:
    """A sequence whose image i is a latent full of i, captioned "i"; counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def pixels(self, start: int, stop: int) -> Tensor:
        self.asked += range(start, stop)
        return torch.arange(start, stop, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, 1)

    def wording(self, index: int) -> Wording:
        return lambda rng: str(index)


class Blank:
    """A sequence of empty images of a size, all captioned "x"."""

    def __init__(self, size: int) -> None:
        self.size = size

    def pixels(self, start: int, stop: int) -> Tensor:
        return torch.zeros(stop - start, 2, self.size, self.size)

    def wording(self, index: int) -> Wording:
        return lambda rng: "x"


def pool_of(images: CaptionedSequence, **settings: Any) -> LatentPool:
    """A pool whose latents are the images themselves."""
    return LatentPool(images, lambda pixels: pixels, **settings)


def window(pool: LatentPool, step: int) -> set[int]:
    latents, captions = pool.draw(step, 600, random.Random(step))
    assert latents[:, 0, 0, 0].tolist() == [float(caption) for caption in captions]
    return {int(caption) for caption in captions}


@pytest.mark.parametrize("block", [1, 3, 4, 10, 64])
def test_the_window_moves_on_and_each_image_is_encoded_once(block: int) -> None:
    source = Numbers()
    pool = pool_of(source, initial=8, fresh=4, capacity=16, block=block)
    for step, expected in enumerate([range(8), range(12), range(16), range(4, 20), range(8, 24), range(12, 28)]):
        assert window(pool, step) == set(expected)
    assert source.asked == list(range(-(-28 // block) * block))


def test_a_pool_that_starts_late_holds_what_an_old_one_holds() -> None:
    old, new = (pool_of(Numbers(), initial=8, fresh=4, capacity=16, block=3) for _ in range(2))
    for step in range(20):
        kept = old.draw(step, 6, random.Random(step))
    late = new.draw(19, 6, random.Random(19))
    assert torch.equal(kept[0], late[0])
    assert kept[1] == late[1]


def test_a_pool_is_filled_by_processes_too() -> None:
    alone, helped = (
        pool_of(Numbers(), initial=200, capacity=400),
        pool_of(Numbers(), initial=200, capacity=400, workers=2),
    )
    for step in (0, 1):
        expected, found = (pool.draw(step, 50, random.Random(step)) for pool in (alone, helped))
        assert torch.equal(expected[0], found[0]) and expected[1] == found[1]


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
    pool = pool_of(Blank(4), initial=4, capacity=4)
    loss = diffusion_loss(pool, Tokens(), squared.tolist(), batch=4000, gamma=5.0)  # type: ignore[arg-type]
    # SNRs 9, 1, 1/9, 0: min(1, 5 / (SNR + 1)) is 0.5 once, then 1
    expected = error**2 * (0.5 + 1 + 1 + 1) / 4
    assert loss(Echo(squared, error), 0, Randomness.at(0, 0)).item() == pytest.approx(expected, rel=0.05, abs=1e-9)


class Small(torch.nn.Module):
    """A denoiser of a few weights that uses all it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.conv = torch.nn.Embedding(256, 2), torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        said = self.words(ids).mean(dim=1) * timestep[:, None] / 1000
        return self.conv(noisy) + said[:, :, None, None]


class Letters:
    def __call__(self, texts: list[str]) -> SimpleNamespace:
        return SimpleNamespace(ids=[[ord(letter) for letter in text.ljust(4)] for text in texts])


class Noise:
    """A sequence of images of noise, captioned with their number or its double."""

    def pixels(self, start: int, stop: int) -> Tensor:
        each = [torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(index)) for index in range(start, stop)]
        return torch.stack(each)

    def wording(self, index: int) -> Wording:
        return lambda rng: str(index * rng.choice((1, 2)))


def test_the_loss_curve_is_that_of_a_loop_that_makes_everything_in_its_step(tmp_path: Path) -> None:
    squared, images, tokens = torch.linspace(0.99, 0.0, 50), Noise(), Letters()

    def whole(model: torch.nn.Module, step: int, randomness: Randomness) -> Tensor:
        """The loss as it was before its parts were made ahead, without a pool: 12 images, of a window of 40."""
        rng, stop = randomness.choices, 20 + 3 * step
        chosen = [rng.randrange(max(0, stop - 40), stop) for _ in range(12)]
        latents = torch.cat([images.pixels(index, index + 1) for index in chosen]).half().float()
        captions = [images.wording(index)(rng) for index in chosen]
        captions = ["" if rng.random() < 0.1 else caption for caption in captions]
        stretch = torch.arange(12) + torch.rand(12, generator=randomness.noise)
        timestep = (stretch * (50 / 12)).long().clamp(max=49)
        noise = torch.randn(latents.shape, generator=randomness.noise)
        alpha, sigma = squared[timestep].sqrt(), (1 - squared[timestep]).sqrt()
        noisy = torch.einsum("b,bchw->bchw", alpha, latents) + torch.einsum("b,bchw->bchw", sigma, noise)
        velocity = torch.einsum("b,bchw->bchw", alpha, noise) - torch.einsum("b,bchw->bchw", sigma, latents)
        errors = (model(noisy, timestep, torch.tensor(tokens(captions).ids)) - velocity).square().mean(dim=(1, 2, 3))
        return (errors * (5 / (squared / (1 - squared) + 1)).clamp(max=1)[timestep]).mean()

    def curve_of(name: str, loss: Loss, workers: int) -> list[float]:
        torch.manual_seed(0)
        fit(Small(), loss, directory=tmp_path / name, budget=Budget(steps=50), peak_rate=5e-2, workers=workers, seed=3,
            accelerator=choose_accelerator("cpu", "fp32"))  # fmt: skip
        return [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    expected = curve_of("whole", whole, 0)
    for workers in (0, 2):
        pool = pool_of(images, initial=20, fresh=3, capacity=40, block=8, workers=workers)
        staged = diffusion_loss(pool, tokens, squared.tolist(), batch=12)  # type: ignore[arg-type]
        assert curve_of(f"{workers} beside", staged, workers) == pytest.approx(expected, abs=2e-5)
        states = [load_file(tmp_path / name / "state.safetensors") for name in ("whole", f"{workers} beside")]
        assert all(torch.allclose(weight, states[1][name], atol=1e-5) for name, weight in states[0].items())
        torch.manual_seed(0)
        assert (states[0]["model.conv.weight"] - Small().conv.weight).abs().max() > 0.1  # far from where it began


def test_captions_are_dropped_at_the_stated_share() -> None:
    tokens = Tokens()
    pool = pool_of(Blank(1), initial=4, capacity=4)
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
    pool = pool_of(source, initial=8, fresh=4, capacity=16, period=10)
    assert [window(pool, step) for step in range(3)] == [set(range(8)), set(range(10)), set(range(10))]
    assert source.asked == list(range(10))
    few = pool_of(source, initial=8, fresh=4, capacity=16, period=3)
    assert window(few, 0) == set(range(3))
    many = pool_of(Numbers(), initial=8, fresh=4, capacity=16, period=17)  # goes on, into the next round
    assert window(many, 5) == set(range(12, 28))
