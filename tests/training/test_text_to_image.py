import importlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from genpipe import Pipeline
from genpipe.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from genpipe.cli import main
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import train_tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig
from genpipe.training.diffusion import TextToImage, Wording
from genpipe.training.folder import Folder, read_folder
from genpipe.training.loop import Budget, choose_accelerator
from genpipe.training.text_to_image import RATE, SCHEDULER, new_model, train, trained_model

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 160, 0), "white": (255, 255, 255)}
SIZE = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 40), colour).save(directory / f"{name}.png")
        (directory / f"{name}.txt").write_text(f"a {name} square")
    return directory


def tiny_model(captions: list[str]) -> Checkpoint:
    """Networks of a few thousand weights, in the shape of those that `new_model` makes."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(captions, 600, length=12)
    text_encoder = TextEncoder(
        TextEncoderConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.length,
            eos_token_id=tokenizer.eos_id,
        )
    )
    unet = UNet(
        UNetConfig(
            sample_size=8,
            channels=(8, 16),
            attention=(True, False),
            attention_up=(True, False),
            layers=(1, 1),
            depth=(1, 1),
            heads=(2, 2),
            only_cross=(False, False),
            context_channels=16,
            norm_groups=4,
        )
    )
    vae = VAE(VAEConfig(channels=(8, 8, 8), layers=1, norm_groups=4, scaling_factor=1.0, middle_attention=False))
    networks = TextToImage(text_encoder, unet).initialise()
    defaults = {"height": SIZE, "width": SIZE, "steps": 2, "guidance_scale": 2.0, "guidance_rescale": 0.0}
    return Checkpoint((networks.text_encoder,), (tokenizer,), unet, vae, dict(SCHEDULER), defaults, source="")


def run(out: Path, model: Checkpoint, images: Any, *, rate: float = RATE, minutes: float = 3.0, **budgets: int) -> None:
    """Train for so many steps of each stage, in small batches; `minutes` pass between two checkpoints."""
    stages: dict[str, Any] = {stage: Budget(steps=steps) for stage, steps in budgets.items()}
    train(
        model,
        images,
        out=out,
        accelerator=choose_accelerator("cpu", "fp32"),
        prompts=sorted(set(images.captions)),
        rate=rate,
        batch=4,
        vae_batch=2,
        measured=0,
        checkpoint_minutes=minutes,
        **stages,
    )


@pytest.fixture
def trained(tmp_path: Path, folder: Path) -> Path:
    """A checkpoint in fp32, whose denoiser does something."""
    model = tiny_model([f"a {name} square" for name in COLOURS])
    with torch.no_grad():
        model.unet.conv_out.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    parts = {key: getattr(model, key) for key in ("text_encoders", "unet", "vae", "tokenizers", "scheduler_config")}
    save_checkpoint(tmp_path / "trained", **parts, defaults=model.defaults)
    return tmp_path / "trained"


def test_a_folder_becomes_a_checkpoint_that_a_pipeline_draws_from(tmp_path: Path, folder: Path) -> None:
    images = read_folder(folder, SIZE)
    run(tmp_path / "out", tiny_model(images.captions), images, autoencoder=3, denoiser=3)
    pipe = Pipeline.from_pretrained(tmp_path / "out" / "checkpoint", device="cpu", dtype="fp32")
    assert pipe("a red square", seed=1, progress=False).size == (SIZE, SIZE)
    assert pipe.sampler().prediction_type == "v_prediction"
    assert Image.open(tmp_path / "out" / "samples.png").size == (4 * SIZE, SIZE)
    assert Image.open(tmp_path / "out" / "vae" / "samples.png").size == (12 * SIZE, 2 * SIZE)
    pixels = images.draw(random.Random("scale"), 12)
    latents = pipe.vae.scale(pipe.vae.encode(pixels)[0])
    assert latents.std(dim=(0, 2, 3)).sub(1).abs().max() < 0.05  # what the denoiser was trained on; saved in fp16


class Killed:
    """A folder's images that end the process when they are asked for the n-th time."""

    def __init__(self, images: Folder, *, after: int) -> None:
        self._images, self._left = images, after
        self.size, self.period, self.captions = images.size, images.period, images.captions

    def draw(self, rng: random.Random, count: int) -> Tensor:
        self._count()
        return self._images.draw(rng, count)

    def pixels(self, start: int, stop: int) -> Tensor:
        self._count()
        return self._images.pixels(start, stop)

    def wording(self, index: int) -> Wording:
        return self._images.wording(index)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


def state(path: Path) -> dict[str, Tensor]:
    return load_file(path / "state.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# In the middle of the autoencoder's training, before the latents' scale, as the denoiser begins.
@pytest.mark.parametrize("after", [3, 5, 6])
def test_a_killed_run_continues_to_bitwise_the_same_weights(tmp_path: Path, folder: Path, after: int) -> None:
    images = read_folder(folder, SIZE)
    often: Any = {"autoencoder": 4, "denoiser": 2, "minutes": 0}
    run(tmp_path / "whole", tiny_model(images.captions), images, **often)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", tiny_model(images.captions), Killed(images, after=after), **often)
    run(tmp_path / "out", tiny_model(images.captions), images, **often)
    for stage in ("vae", "denoiser"):
        assert same(state(tmp_path / "whole" / stage), state(tmp_path / "out" / stage)), stage
    weights = "checkpoint/vae/diffusion_pytorch_model.safetensors"
    assert same(load_file(tmp_path / "whole" / weights), load_file(tmp_path / "out" / weights))


def test_a_denoiser_killed_after_its_last_state_still_leaves_a_checkpoint(tmp_path: Path, folder: Path) -> None:
    images = read_folder(folder, SIZE)
    (tmp_path / "checkpoint").write_text("in the way of the folder that is to be written")
    with pytest.raises(OSError):
        run(tmp_path, tiny_model(images.captions), images, autoencoder=1, denoiser=1)
    assert (tmp_path / "denoiser" / "state.safetensors").exists()
    (tmp_path / "checkpoint").unlink()
    run(tmp_path, tiny_model(images.captions), images, autoencoder=1, denoiser=1)
    assert load_checkpoint(tmp_path / "checkpoint")


def test_a_warm_start_keeps_how_its_model_is_run_and_not_what_it_knows(tmp_path: Path, trained: Path) -> None:
    said = json.loads((trained / "genpipe.json").read_text(encoding="utf-8"))
    run_by = {"half_size": True}
    (trained / "genpipe.json").write_text(json.dumps({**said, **run_by, "prompt": "scenes", "concepts": ["cat"]}))
    assert trained_model(tmp_path / "out", trained, size=SIZE).defaults == {**said, **run_by}


def test_a_warm_start_begins_at_the_saved_weights(tmp_path: Path, folder: Path, trained: Path) -> None:
    before = (trained / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    model = trained_model(tmp_path / "out", trained, size=SIZE)
    run(tmp_path / "out", model, read_folder(folder, SIZE), denoiser=1, rate=1e-9)
    found = state(tmp_path / "out" / "denoiser")
    saved = load_checkpoint(trained, dtype=torch.float32)
    networks = TextToImage(saved.text_encoders[0], saved.unet).state_dict()
    for name, weight in networks.items():
        assert torch.allclose(found[f"model.{name}"], weight, atol=1e-7), name
    assert (trained / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_the_autoencoder_of_a_warm_start_is_kept(tmp_path: Path, folder: Path, trained: Path) -> None:
    images = read_folder(folder, SIZE)
    run(tmp_path / "out", trained_model(tmp_path / "out", trained, size=SIZE), images, denoiser=2)
    before, after = (load_checkpoint(path, dtype=torch.float32) for path in (trained, tmp_path / "out" / "checkpoint"))
    half = {name: tensor.half().float() for name, tensor in before.vae.state_dict().items()}
    assert same(half, after.vae.state_dict())
    assert not torch.equal(before.unet.conv_out.weight.half().float(), after.unet.conv_out.weight)


def test_the_decoder_alone_is_trained_and_latents_keep_their_meaning(
    tmp_path: Path, folder: Path, trained: Path
) -> None:
    images = read_folder(folder, SIZE)
    run(tmp_path / "out", trained_model(tmp_path / "out", trained, size=SIZE), images, decoder=3)
    before, after = (load_checkpoint(path, dtype=torch.float32) for path in (trained, tmp_path / "out" / "checkpoint"))
    changed = {
        name.split(".")[0]
        for name, tensor in before.vae.state_dict().items()
        if not torch.equal(tensor.half().float(), after.vae.state_dict()[name])
    }
    assert changed == {"decoder", "from_latents"}
    assert torch.equal(before.unet.conv_out.weight.half().float(), after.unet.conv_out.weight)
    # A killed training of the decoder continues too: the state knows which weights were trained.
    run(tmp_path / "out", trained_model(tmp_path / "out", trained, size=SIZE), images, decoder=5)


def test_a_grown_model_draws_twice_as_large_from_the_same_latents_and_keeps_its_denoiser(
    tmp_path: Path, folder: Path, trained: Path
) -> None:
    model = trained_model(tmp_path / "out", trained, grow=True)
    run(tmp_path / "out", model, read_folder(folder, 2 * SIZE), growth=3)
    before, after = (load_checkpoint(path, dtype=torch.float32) for path in (trained, tmp_path / "out" / "checkpoint"))
    assert after.vae.config.factor == 2 * before.vae.config.factor
    assert after.unet.config == before.unet.config
    assert all(
        torch.equal(weight.half().float(), after.unet.state_dict()[name])
        for name, weight in before.unet.state_dict().items()
    )
    pipe = Pipeline.from_pretrained(tmp_path / "out" / "checkpoint", device="cpu")
    assert pipe("a red square", seed=1, progress=False).size == (2 * SIZE, 2 * SIZE)
    assert pipe("a red square", seed=1, width=SIZE, height=SIZE, progress=False).size == (SIZE, SIZE)


def test_a_distilled_denoiser_draws_with_one_evaluation_per_step(tmp_path: Path, folder: Path, trained: Path) -> None:
    images = read_folder(folder, SIZE)
    run(tmp_path / "out", trained_model(tmp_path / "out", trained, size=SIZE), images, guidance=20)
    pipe = Pipeline.from_pretrained(tmp_path / "out" / "checkpoint", device="cpu", dtype="fp32")
    evaluated: list[int] = []
    pipe.checkpoint.unet.conv_in.register_forward_pre_hook(lambda _, given: evaluated.append(len(given[0])))
    low, high = (pipe("a red square", seed=1, guidance_scale=scale, progress=False) for scale in (1.0, 5.0))
    assert evaluated == [1] * 4  # two steps each, of one image
    assert low.tobytes() != high.tobytes()
    again = trained_model(tmp_path / "again", tmp_path / "out" / "checkpoint", size=SIZE)
    with pytest.raises(ValueError, match="takes the guidance scale: train the checkpoint that it was distilled from"):
        run(tmp_path / "again", again, images, denoiser=1)


def test_a_warm_start_takes_what_it_can_continue(tmp_path: Path, folder: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="trained to predict epsilon: --init takes checkpoints of v_prediction only"):
        trained_model(tmp_path, tiny_checkpoint, size=32)


def test_a_folder_of_another_training_is_refused(tmp_path: Path, folder: Path, trained: Path) -> None:
    images = read_folder(folder, SIZE)
    warm, fresh = tmp_path / "warm", tmp_path / "fresh"
    run(warm, trained_model(warm, trained, size=SIZE), images, denoiser=1)
    run(fresh, tiny_model(images.captions), images, autoencoder=1)
    with pytest.raises(ValueError, match="warm holds a training that began with --init"):
        new_model(warm, images.captions)
    with pytest.raises(ValueError, match="fresh holds a training that began without --init"):
        trained_model(fresh, trained, size=SIZE)
    model = tiny_model(images.captions)
    wider = replace(model, vae=VAE(replace(model.vae.config, channels=(16, 8, 8))))
    with pytest.raises(ValueError, match=r"state.safetensors is the state of another network"):
        run(fresh, wider, images, autoencoder=2)


def test_a_new_model_keeps_the_tokenizer_of_the_training_it_continues(tmp_path: Path, folder: Path) -> None:
    images = read_folder(folder, SIZE)
    model = new_model(tmp_path, images.captions, size=64)
    assert model.unet.config.sample_size == 8 and model.defaults["width"] == model.vae.config.sample_size == 64
    model.tokenizers[0].save(tmp_path / "checkpoint" / "tokenizer")
    again = new_model(tmp_path, ["quite other words", "in other captions"], size=64)
    words = ["a red square"]
    assert again.tokenizers[0](words).ids == model.tokenizers[0](words).ids
    other = new_model(tmp_path / "other", ["quite other words"], size=64)
    assert other.tokenizers[0](words).ids != model.tokenizers[0](words).ids
    with pytest.raises(ValueError, match="height must be a multiple of 8 for this model, not 100"):
        new_model(tmp_path, [], size=100)


def test_the_command_trains_on_a_folder_and_says_what_it_skipped(
    tmp_path: Path, folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"")
    (folder / "bad.txt").write_text("x")
    out = tmp_path / "out"
    settings = ["--size", "32", "--init", str(trained), "--minutes", "0.004", "--device", "cpu"]
    assert main(["train", str(folder), "--out", str(out), *settings]) == 0
    printed = capsys.readouterr().out
    assert "4 images, 1 skipped\n  skipped, not an image: bad.png\n" in printed
    assert printed.endswith(f'genpipe "a blue square" --model {out / "checkpoint"}\n')
    assert Pipeline.from_pretrained(out / "checkpoint", device="cpu")("a red square", seed=1, progress=False).size == (
        32,
        32,
    )
    assert (out / "decoder" / "state.safetensors").exists() and not (out / "vae").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder: give one that holds images and their captions"),
        (["nowhere", "--minutes", "-1"], "argument --minutes: minutes must be a number from 0 to"),
        (["nowhere", "--size", "100"], "height must be a multiple of 8 for this model, not 100: the nearest is"),
        (["nowhere", "--init", "nothing"], ""),
    ],
)
def test_the_commands_mistakes_are_one_line(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", *arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"genpipe: error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_training_of_the_embedded_model_goes_on_from_a_checkpoint(tmp_path: Path, trained: Path) -> None:
    module = importlib.import_module("scripts.train.embedded")
    settings = [
        "--init",
        str(trained),
        "--minutes",
        "0",
        "--decoder-minutes",
        "0.001",
        "--concepts",
        "cat, pirate ship",
        "--device",
        "cpu",
    ]
    module.main(["--out", str(tmp_path / "out"), *settings])
    made = load_checkpoint(tmp_path / "out" / "checkpoint")
    assert made.defaults["concepts"] == ["cat", "pirate ship"] and made.defaults["prompt"] == "scenes"
    assert made.defaults["steps"] == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"decoder", "checkpoint", "samples.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decoder-minutes", "3"], "--decoder-minutes and --growth-minutes need --init"),
        (["--growth-minutes", "3"], "--decoder-minutes and --growth-minutes need --init"),
        (["--guidance-minutes", "3"], "--guidance-minutes needs --init"),
        (["--concepts", "cat,florble"], "--concepts 'florble' is not among the"),
        (["--minutes", "0"], "error: a training budget of 0.0 is out of range: use more"),
    ],
)
def test_mistakes_in_training_the_embedded_model(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = importlib.import_module("scripts.train.embedded")
    with pytest.raises(SystemExit) as error:
        module.main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert message in capsys.readouterr().err + str(error.value) and not (tmp_path / "out").exists()


def test_the_embedded_models_images_are_a_function_of_the_seed() -> None:
    module = importlib.import_module("scripts.train.scenes")
    scenes = module.Scenes(64, concepts=("cat", "pirate ship"), seed=3)
    pixels, captions = scenes.pixels(5, 7), [scenes.wording(index) for index in (5, 6)]
    assert pixels.shape == (2, 3, 64, 64)
    later = scenes.pixels(6, 8)
    assert torch.equal(pixels[1], later[0]) and not torch.equal(pixels[0], later[0])
    assert all(caption(random.Random(0)) for caption in captions)
