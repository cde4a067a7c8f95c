"""Train the embedded model: the autoencoder, the text encoder, then the denoiser, on images that genpipe draws.

    python -m scripts.train.embedded --out runs/embedded --minutes 120
    python -m scripts.train.embedded --out runs/anew --minutes 120 --vae genpipe/embedded --vae-share 0
    python -m scripts.train.embedded --out runs/further --minutes 120 --init genpipe/embedded --seed 1
    python -m scripts.train.embedded --out runs/decoder --minutes 0 --init genpipe/embedded --decoder-minutes 30
    python -m scripts.train.embedded --out runs/large --minutes 0 --init runs/anew/checkpoint --growth-minutes 90

Killed and started again with the same --out, it continues. Samples to look at appear in --out as it goes, and the
checkpoint in --out/checkpoint, in the layout of genpipe/embedded.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from genpipe.checkpoints import load_checkpoint
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.scenes.captions import Style, caption, corpus
from genpipe.scenes.compose import Composer
from genpipe.scenes.concepts import names
from genpipe.scenes.world import Scene, sample
from genpipe.training.diffusion import Wording
from genpipe.training.loop import Budget, choose_accelerator, fit
from genpipe.training.text_encoder import Reader, reading_loss
from genpipe.training.text_to_image import RATE, new_model, train, trained_model

TOKENS = 32
MORE_PAIRS = 0.4  # with the world's own share, 56 % of the images that the denoiser learns from
SAMPLES = ("pirate ship", "pirate ship in space", "red car", "cat", "castle in the snow", "пиратский корабль",
           "a dog and a cat", "two apples", "rocket in space", "blue flower", "tree", "house at night")  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of states, samples, checkpoint")
    parser.add_argument("--minutes", type=float, default=120, help="time for the whole training (%(default)s)")
    parser.add_argument(
        "--vae-share", type=float, default=0.3, help="without --init: share of it for the autoencoder (%(default)s)"
    )
    parser.add_argument(
        "--text-share", type=float, default=0.08, help="without --init: for the text encoder (%(default)s)"
    )
    parser.add_argument("--vae", metavar="CHECKPOINT", help="without --init: begin with its autoencoder")
    parser.add_argument(
        "--concepts",
        type=lambda text: tuple(name.strip() for name in text.split(",")),
        default=names(core=True),
        metavar="A,B",
        help="learn only these concepts of the world (default: the core ones)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn (%(default)s)")
    parser.add_argument(
        "--init",
        metavar="CHECKPOINT",
        help="start from its weights: all --minutes are for the denoiser, its autoencoder and text encoder are kept",
    )
    parser.add_argument(
        "--decoder-minutes",
        type=float,
        default=0.0,
        help="with --init: time before that for the autoencoder's decoder alone (%(default)s)",
    )
    parser.add_argument(
        "--growth-minutes",
        type=float,
        default=0.0,
        help="with --init: time before that for one more level of the autoencoder, for images of twice the size "
        "(%(default)s)",
    )
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(given)
    if arguments.init is None and (arguments.decoder_minutes or arguments.growth_minutes):
        parser.error("--decoder-minutes and --growth-minutes need --init, the checkpoint whose autoencoder is trained")
    if arguments.init is not None and arguments.vae is not None:
        parser.error("--vae goes with a training from fresh weights: leave it or --init out")
    if unknown := [name for name in arguments.concepts if name not in names()]:
        parser.error(f"--concepts {unknown[0]!r} is not among the {len(names())} of genpipe.scenes")
    try:
        run(arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error


def run(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    accelerator = choose_accelerator(arguments.device)
    out, minutes, seed = arguments.out, arguments.minutes, arguments.seed
    if arguments.init is None:
        shares = {"autoencoder": arguments.vae_share, "text": arguments.text_share}
        shares["denoiser"] = 1 - sum(shares.values())
        budgets = {stage: Budget(minutes=minutes * share) for stage, share in shares.items() if share > 0}
        vae = load_checkpoint(arguments.vae, dtype=torch.float32).vae if arguments.vae is not None else None
        model = new_model(out, corpus(), tokens=TOKENS, vae=vae)
        if "text" in budgets:
            encoder = teach(
                model.text_encoders[0], model.tokenizers[0], out / "text", budgets["text"], accelerator, seed
            )
            model = replace(model, text_encoders=(encoder,))
    else:
        stages = {"growth": arguments.growth_minutes, "decoder": arguments.decoder_minutes, "denoiser": minutes}
        budgets = {stage: Budget(minutes=time) for stage, time in stages.items() if time}
        model = trained_model(out, arguments.init, grow="growth" in budgets)
    train(
        replace(model, defaults={**model.defaults, "prompt": "scenes", "concepts": list(arguments.concepts)}),
        Scenes(accelerator.device, model.defaults["height"], concepts=arguments.concepts, seed=seed),
        out=out,
        accelerator=accelerator,
        autoencoder=budgets.get("autoencoder"),
        growth=budgets.get("growth"),
        decoder=budgets.get("decoder"),
        denoiser=budgets.get("denoiser"),
        freeze_text=True,
        rate=RATE if arguments.init is None else RATE / 2,
        prompts=SAMPLES,
        seed=seed,
    )


def teach(
    encoder: TextEncoder, tokenizer: Tokenizer, directory: Path, budget: Budget, accelerator: Accelerator, seed: int
) -> TextEncoder:
    """Train the text encoder to read the captions of the whole world, also of what the denoiser is not to learn yet."""

    averaged = fit(
        Reader(encoder),
        reading_loss(partial(draw_scene, more_pairs=0.3), word, tokenizer),
        directory=directory,
        budget=budget,
        peak_rate=RATE,
        accelerator=accelerator,
        seed=seed,
    )
    assert isinstance(averaged, Reader)
    return averaged.encoder


def draw_scene(rng: random.Random, pool: Sequence[str] | None = None, *, more_pairs: float) -> Scene:
    """A scene of the world, but so often surely a pair: pairs are the hardest both to read and to draw."""
    scene, pair = sample(rng, pool), rng.random() < more_pairs
    while pair and scene.kind != "pair" and (pool is None or len(pool) > 1):
        scene = sample(rng, pool)
    return scene


class Scenes:
    """The procedural world as images to train on, drawn on the device that trains."""

    period: int | None = None

    def __init__(self, device: torch.device, size: int, *, concepts: Sequence[str], seed: int) -> None:
        self.size = size
        self._composer, self._pool, self._seed = Composer(device, size), concepts, seed

    def draw(self, rng: random.Random, count: int) -> Tensor:
        return self._composer.render([sample(rng, self._pool) for _ in range(count)])

    def sequence(self, start: int, stop: int) -> tuple[Tensor, Sequence[Wording]]:
        indices = range(start, stop)
        scenes = [draw_scene(random.Random(f"{self._seed}/{i}"), self._pool, more_pairs=MORE_PAIRS) for i in indices]
        return self._composer.render(scenes), [partial(word, scene) for scene in scenes]


def word(scene: Scene, rng: random.Random) -> str:
    """One caption of a scene: two in five English, the rest Russian, in sentences or in the few words people type."""
    language = "ru" if rng.random() < 0.6 else "en"
    style: Style = rng.choices(("full", "short", "bare"), (4, 4, 1))[0]
    return caption(scene, rng, language=language, style=style)


if __name__ == "__main__":
    main()
