"""A whole text-to-image model from captioned images: first the autoencoder, then the text encoder and the denoiser.

A training lives in one folder: the states of its stages in `vae` (or `decoder`) and `denoiser`, images to look at in
`samples.png` beside each, and in `checkpoint` what a pipeline draws from. Killed and begun again, it continues.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genpipe.checkpoints import Checkpoint, load_checkpoint, save_folder
from genpipe.images import grid, save_image, to_pil
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import Tokenizer, train_tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig
from genpipe.pipeline import Pipeline
from genpipe.request import check_size
from genpipe.sampling.levels import cumulative_alphas
from genpipe.training.ahead import sent, workers_beside
from genpipe.training.autoencoder import autoencoder_loss, growing_loss, grown, psnr, standardise_latents
from genpipe.training.diffusion import CaptionedSequence, LatentPool, TextToImage, diffusion_loss
from genpipe.training.guidance import distilled, guidance_loss
from genpipe.training.loop import Budget, Loss, Randomness, fit

N = TypeVar("N", bound=nn.Module)

SIZE = 128
VAE_BATCH, BATCH = 8, 64
MEASURED = 64  # images of 128 pixels
ENCODED = 8  # images at once on a CPU: what more take would leave its caches
# Peak learning rates from fresh weights; those that were trained before continue at half of them.
VAE_RATE, RATE = 1.2e-3, 2e-3
VAE_CONFIG = VAEConfig(
    latent_channels=8,
    channels=(16, 32, 64, 128),
    layers=1,
    norm_groups=8,
    scaling_factor=1.0,
    sample_size=SIZE,
    middle_attention=False,
)
UNET_CONFIG = UNetConfig(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    channels=(64, 96, 144),
    attention=(False, False, True),
    attention_up=(False, True, True),
    layers=(1, 1, 1),
    depth=(1, 1, 1),
    heads=(2, 3, 3),
    only_cross=(False, False, False),
    context_channels=256,
    norm_groups=16,
)
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
DEFAULTS = {
    "height": SIZE,
    "width": SIZE,
    "steps": 16,
    "guidance_scale": 3.0,
    "guidance_rescale": 0.0,
    # At a size that it was not trained at, a prompt draws things a second time beside themselves.
    "upscale_strength": 0.1,
    "upscale_guidance_scale": 0.0,
}


class CaptionedImages(CaptionedSequence, Protocol):
    """Captioned images of one size; pixels are (n, 3, size, size) in [-1, 1], on the CPU.

    Attributes:
        size: side of the images, in pixels.
        period: after so many images the sequence begins again; None if it never does.
    """

    @property
    def size(self) -> int: ...

    @property
    def period(self) -> int | None: ...

    def draw(self, rng: random.Random, count: int) -> Tensor:
        """Return `count` images at random."""
        ...


def new_model(
    out: Path, captions: Iterable[str], *, size: int = SIZE, tokens: int = 77, vae: VAE | None = None
) -> Checkpoint:
    """Build a model of fresh weights, about 12 million, for images of `size` pixels.

    Its tokenizer is the one that a training in `out` uses already, else it learns up to 3072 tokens from the captions.

    Args:
        out: the folder of the training.
        tokens: length of a prompt, the marks of begin and end included.
        vae: an autoencoder that was trained before, of the shape of `VAE_CONFIG`.

    Raises:
        ValueError: `size` is not a multiple of 8, or the training in `out` began from the weights of another.
    """
    check_size(size, size, VAE_CONFIG.factor)
    if vae is None and _state(out, "denoiser").exists() and not _state(out, "vae").exists():
        raise ValueError(f"{out} holds a training that began with --init: give it again, or another --out")
    used = out / "checkpoint" / "tokenizer"
    tokenizer = Tokenizer.from_files(used) if used.is_dir() else train_tokenizer(captions, 3072, length=tokens)
    vae = VAE(replace(VAE_CONFIG, sample_size=size)) if vae is None else vae
    shape = TextEncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.length,
        eos_token_id=tokenizer.eos_id,
    )
    networks = TextToImage(
        TextEncoder(shape), UNet(replace(UNET_CONFIG, sample_size=size // VAE_CONFIG.factor))
    ).initialise()
    defaults = {**DEFAULTS, "height": size, "width": size}
    return Checkpoint((networks.text_encoder,), (tokenizer,), networks.unet, vae, dict(SCHEDULER), defaults, source="")


def trained_model(out: Path, init: str | Path, *, size: int | None = None, grow: bool = False) -> Checkpoint:
    """Load the model of a checkpoint in fp32, to go on from its weights.

    Args:
        out: the folder of the training.
        init: the checkpoint, a folder or a hub id.
        size: of the images, in pixels; it becomes the model's default. None: what the model was trained on.
        grow: add a level to its autoencoder, which is to be trained with the budget `growth` of `train`: the images are
            twice as large as its latents were made for.

    Raises:
        CheckpointError: the checkpoint is missing, not whole, or not one that genpipe can run.
        ValueError: it does not predict the velocity, has two text encoders, cannot draw `size`, or the training in `out`
            began without it.
    """
    if _state(out, "vae").exists():
        raise ValueError(f"{out} holds a training that began without --init: leave it out, or give another --out")
    model = load_checkpoint(init, dtype=torch.float32)
    if len(model.text_encoders) > 1 or model.unet.config.added_channels is not None:
        raise ValueError(f"{init} is of {model.family.title}: --init takes checkpoints with one text encoder only")
    predicted = model.scheduler_config.get("prediction_type", "epsilon")
    if predicted != "v_prediction":
        raise ValueError(f"{init} was trained to predict {predicted}: --init takes checkpoints of v_prediction only")
    factor = model.vae.config.factor * (2 if grow else 1)
    size = min(model.unet.config.sample_shape) * factor if size is None else size
    check_size(size, size, factor)
    model.unet.config = replace(model.unet.config, sample_size=size // factor)
    # What else it says of itself, such as what it can draw, will not hold for what it learns.
    kept = {key: value for key, value in model.defaults.items() if key in (*DEFAULTS, "half_size")}
    kept |= {"half_size": True} if grow else {}
    return replace(model, defaults={**kept, "height": size, "width": size})


def train(
    model: Checkpoint,
    images: CaptionedImages,
    *,
    out: Path,
    accelerator: Accelerator,
    autoencoder: Budget | None = None,
    growth: Budget | None = None,
    decoder: Budget | None = None,
    denoiser: Budget | None = None,
    guidance: Budget | None = None,
    freeze_text: bool = False,
    rate: float = RATE,
    prompts: Sequence[str],
    seed: int = 0,
    batch: int = BATCH,
    vae_batch: int = VAE_BATCH,
    measured: int = MEASURED,
    checkpoint_minutes: float = 3.0,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Train the networks of `model`, stage by stage, and save it in `out`/checkpoint as it goes.

    Args:
        autoencoder: budget of the whole autoencoder, for a fresh model.
        growth: budget of one more level of the autoencoder, for a model loaded with `grow`.
        decoder: budget of the decoder alone, for a model trained before: its latents keep their meaning, so the
            denoiser stays valid.
        denoiser: budget of the text encoder and the denoiser. A stage whose budget is None is left out.
        guidance: budget of a denoiser that learns to give at once what the one before it gives with guidance.
        freeze_text: keep the text encoder as it is, and train the denoiser alone.
        rate: highest learning rate of the denoiser, lower for one that was trained before.
        prompts: what the samples show.
        seed: of everything drawn.
        batch, vae_batch: images per step of the denoiser and of the autoencoder.
        measured: images that the autoencoder's PSNR is measured on; four times as many set the scale of the latents. Of
            images larger or smaller than 128 pixels as many as have the pixels of these, and at least 12.
        checkpoint_minutes: time between two checkpoints.
        stop: asked after each step whether to end early, as after a last checkpoint.

    Raises:
        ValueError: `out` holds the training of another model, or the denoiser is one of distilled guidance already.
        FloatingPointError: the loss is not finite; what was saved is intact.
        Stopped: `stop` said so.
    """
    device = accelerator.device
    if model.unet.config.guidance_channels is not None and (denoiser is not None or guidance is not None):
        raise ValueError("the denoiser takes the guidance scale: train the checkpoint that it was distilled from")

    def stage_of(
        name: str, network: N, loss: Loss, budget: Budget, peak_rate: float, look: Callable[[nn.Module], None]
    ) -> N:
        averaged = fit(
            network,
            loss,
            directory=out / name,
            budget=budget,
            peak_rate=peak_rate,
            accelerator=accelerator,
            seed=seed,
            checkpoint_minutes=checkpoint_minutes,
            on_checkpoint=look,
            stop=stop,
        )
        assert isinstance(averaged, type(network))
        return averaged

    def train_vae(vae: VAE, stage: str, budget: Budget, peak_rate: float, loss: Loss) -> VAE:
        shown = images.draw(random.Random("unseen"), _as_many(measured, images.size)).to(device)

        def look(model: nn.Module) -> None:
            assert isinstance(model, VAE)
            with torch.no_grad():
                decoded = model.decode(model.scale(model.encode(shown[:12])[0])).float()
            save_image(grid([*to_pil(shown[:12]), *to_pil(decoded)], columns=12), out / stage / "samples.png")
            accelerator.print(f"{stage}: {psnr(model, shown):.2f} dB")

        return stage_of(stage, vae, loss, budget, peak_rate, look)

    def drawn(randomness: Randomness) -> Tensor:
        return images.draw(randomness.choices, vae_batch)

    vae = model.vae.to(device)
    if autoencoder is not None:
        vae = train_vae(vae, "vae", autoencoder, VAE_RATE, autoencoder_loss(drawn, vae.config))
        drawn_once = images.draw(random.Random("scale"), _as_many(4 * measured, images.size))
        standardise_latents(vae, drawn_once.to(device))
    if growth is not None:
        loss = growing_loss(drawn, vae.requires_grad_(False))
        vae = train_vae(grown(vae).requires_grad_(True), "growth", growth, VAE_RATE, loss)
    if decoder is not None:
        vae.requires_grad_(False)
        for part in (vae.decoder, vae.from_latents):
            part.requires_grad_(True)
        vae = train_vae(vae, "decoder", decoder, VAE_RATE / 2, autoencoder_loss(drawn, vae.config, decoder_only=True))
    model = replace(model, vae=vae.requires_grad_(False))
    text_encoder = model.text_encoders[0].requires_grad_(not freeze_text)
    networks = TextToImage(text_encoder, model.unet).to(device)

    def save(averaged: nn.Module) -> None:
        assert isinstance(averaged, TextToImage)
        made = replace(model, text_encoders=(averaged.text_encoder,), unet=averaged.unet)
        _save(made, out, prompts, device)

    if denoiser is None and guidance is None:
        save(networks)
        return

    def encode(pixels: Tensor) -> Tensor:
        parts = pixels.split(ENCODED) if device.type == "cpu" else [sent(pixels, device)]
        with torch.no_grad(), accelerator.autocast():
            return torch.cat([vae.scale(vae.encode(part)[0].float()) for part in parts])

    def pool() -> LatentPool:
        fresh, workers = max(8, batch // 8), workers_beside(device)
        return LatentPool(images, encode, fresh=fresh, period=images.period, workers=workers)

    tokenizer, alphas = model.tokenizers[0], squared_alphas(model.scheduler_config)
    if denoiser is not None:
        loss = diffusion_loss(pool(), tokenizer, alphas, batch=batch)
        networks = stage_of("denoiser", networks, loss, denoiser, rate, save)
    if guidance is not None:
        teacher = networks.requires_grad_(False)
        student = TextToImage(teacher.text_encoder, distilled(teacher.unet)).to(device)
        loss = guidance_loss(pool(), tokenizer, alphas, teacher.unet, batch=batch)
        stage_of("guidance", student, loss, guidance, rate, save)


def _save(model: Checkpoint, out: Path, prompts: Sequence[str], device: torch.device) -> None:
    """Write the checkpoint in fp16, and what it draws of the prompts."""
    save_folder(out / "checkpoint", model, dtype=torch.float16)
    images = Pipeline.from_pretrained(out / "checkpoint", device=device)(list(prompts), seed=1, progress=False)
    save_image(grid(images, columns=6), out / "samples.png")


def _as_many(count: int, size: int) -> int:
    """As many images of `size` as have the pixels of `count` images of 128, and at least 12."""
    return max(12, count * SIZE**2 // size**2)


def squared_alphas(config: Mapping[str, Any]) -> list[float]:
    """Return the schedule's squared alphas; where the file is silent, with the defaults of diffusers' schedulers."""
    return cumulative_alphas(
        config.get("beta_schedule", "linear"),
        config.get("beta_start", 0.0001),
        config.get("beta_end", 0.02),
        config.get("num_train_timesteps", 1000),
        trained_betas=config.get("trained_betas"),
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
    )


def _state(out: Path, stage: str) -> Path:
    return out / stage / "state.safetensors"
