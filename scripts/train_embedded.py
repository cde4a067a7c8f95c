"""Train the embedded model: the autoencoder, then the text encoder and the denoiser, on pictures that genpipe draws.

    python scripts/train_embedded.py --out runs/embedded --minutes 120

Killed and started again with the same --out, it continues. Samples to look at appear in --out as it goes, and the
checkpoint in --out/checkpoint, in the layout of genpipe/embedded.
"""

import argparse
import random
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from genpipe.checkpoints.saving import save_checkpoint
from genpipe.images import grid, save_image, to_pil
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import Tokenizer, train_tokenizer
from genpipe.models.unet import UNet, UNetConfig
from genpipe.models.vae import VAE, VAEConfig
from genpipe.pipeline import Pipeline
from genpipe.sampling.schedule import cumulative_alphas
from genpipe.scenes.captions import caption, corpus
from genpipe.scenes.compose import Composer
from genpipe.scenes.world import Scene, sample_batch
from genpipe.training.autoencoder import autoencoder_loss, psnr, standardise_latents
from genpipe.training.diffusion import Captioned, LatentPool, TextToImage, diffusion_loss
from genpipe.training.loop import Budget, Draw, fit

SIZE, TOKENS = 128, 32
VAE_BATCH, BATCH = 8, 64
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
    channels=(96, 128, 192),
    attention=(False, True, True),
    attention_up=(False, True, True),
    layers=(1, 1, 1),
    depth=(1, 1, 1),
    heads=(3, 4, 6),
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
DEFAULTS = {"height": SIZE, "width": SIZE, "steps": 16, "guidance_scale": 3.0, "guidance_rescale": 0.0}
SAMPLES = ("pirate ship", "pirate ship in space", "red car", "cat", "castle in the snow", "пиратский корабль",
           "a dog and a cat", "two apples", "rocket in space", "blue flower", "tree", "house at night")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of states, samples, checkpoint")
    parser.add_argument("--minutes", type=float, default=120, help="time for the whole training (%(default)s)")
    parser.add_argument("--vae-share", type=float, default=0.3, help="share of it for the autoencoder (%(default)s)")
    parser.add_argument("--core", action="store_true", help="learn only the core concepts of the world")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn (%(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    accelerator = Accelerator(mixed_precision="bf16")
    composer = Composer(device=str(accelerator.device), size=SIZE)
    draw_scenes = partial(sample_batch, core=arguments.core)
    minutes = arguments.minutes * arguments.vae_share
    vae = train_vae(arguments.out / "vae", composer, draw_scenes, accelerator, minutes, arguments.seed)
    train_denoiser(arguments.out, vae, composer, draw_scenes, accelerator, arguments.minutes - minutes, arguments.seed)


def train_vae(
    directory: Path, composer: Composer, draw_scenes, accelerator: Accelerator, minutes: float, seed: int
) -> VAE:
    """Train the autoencoder, then put its latents on the unit scale."""

    def pictures(draw: Draw) -> Tensor:
        return composer.render(draw_scenes(draw.scenes, VAE_BATCH))

    unseen = composer.render(draw_scenes(random.Random("unseen"), 64))

    def look(model: torch.nn.Module) -> None:
        assert isinstance(model, VAE)
        with torch.no_grad():
            decoded = model.decode(model.scale(model.encode(unseen[:12])[0])).float()
        rows = [*to_pil(unseen[:12]), *to_pil(decoded)]
        save_image(grid(rows, columns=12), directory / "samples.png")
        accelerator.print(f"\nautoencoder: {psnr(model, unseen):.2f} dB on unseen scenes")

    vae = VAE(VAE_CONFIG).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    averaged = fit(
        vae,
        autoencoder_loss(pictures),
        directory=directory,
        budget=Budget(minutes=minutes),
        peak_rate=1.5e-3,
        accelerator=accelerator,
        seed=seed,
        on_checkpoint=look,
    )
    assert isinstance(averaged, VAE)
    standardise_latents(averaged, composer.render(draw_scenes(random.Random("scale"), 256)))
    return averaged


def train_denoiser(
    directory: Path, vae: VAE, composer: Composer, draw_scenes, accelerator: Accelerator, minutes: float, seed: int
) -> None:
    """Train the text encoder and the denoiser on the autoencoder's latents; save a checkpoint as it goes."""
    tokenizer = train_tokenizer(corpus(), vocab_size=4096, length=TOKENS)

    @torch.no_grad()
    def source(start: int, stop: int) -> tuple[Tensor, list[Captioned]]:
        scenes = [draw_scenes(random.Random(f"{seed}/{index}"), 1)[0] for index in range(start, stop)]
        with accelerator.autocast():
            latents = vae.scale(vae.encode(composer.render(scenes))[0].float())
        return latents, [partial(word, scene) for scene in scenes]

    model: torch.nn.Module = TextToImage(
        TextEncoder(
            TextEncoderConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=256,
                intermediate_size=1024,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                eos_token_id=tokenizer.eos_id,
            )
        ),
        UNet(UNET_CONFIG),
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    alphas = cumulative_alphas("scaled_linear", 0.00085, 0.012, 1000, zero_terminal_snr=True)

    def save(averaged: torch.nn.Module) -> None:
        assert isinstance(averaged, TextToImage)
        save_embedded(directory / "checkpoint", averaged, vae, tokenizer)
        images = Pipeline.from_pretrained(directory / "checkpoint")(list(SAMPLES), seed=1, progress=False)
        save_image(grid(images, columns=6), directory / "samples.png")

    fit(
        model,
        diffusion_loss(LatentPool(source), tokenizer, alphas, batch=BATCH),
        directory=directory / "denoiser",
        budget=Budget(minutes=minutes),
        peak_rate=1e-3,
        accelerator=accelerator,
        average=0.9985,
        seed=seed,
        on_checkpoint=save,
    )


def word(scene: Scene, rng: random.Random) -> str:
    """One caption of a scene: two in three English, the rest Russian."""
    language = "ru" if rng.random() < 0.33 else "en"
    return caption(scene, rng, language=language)


def save_embedded(directory: Path, model: TextToImage, vae: VAE, tokenizer: Tokenizer) -> None:
    """Write the three networks as fp16 in the checkpoint layout."""
    save_checkpoint(
        directory,
        text_encoder=model.text_encoder,
        unet=model.unet,
        vae=vae,
        tokenizer=tokenizer,
        scheduler_config=SCHEDULER,
        defaults=DEFAULTS,
        dtype=torch.float16,
    )


if __name__ == "__main__":
    main()
