"""Train the embedded model: the autoencoder, then the text encoder and the denoiser, on pictures that genpipe draws.

    python scripts/train_embedded.py --out runs/embedded --minutes 120
    python scripts/train_embedded.py --out runs/further --minutes 120 --init genpipe/embedded --seed 1
    python scripts/train_embedded.py --out runs/decoder --minutes 0 --init genpipe/embedded --decoder-minutes 30

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
from torch import Tensor

from genpipe.scenes.captions import caption, corpus
from genpipe.scenes.compose import Composer
from genpipe.scenes.concepts import names
from genpipe.scenes.world import Scene, sample
from genpipe.training.diffusion import Captioned
from genpipe.training.loop import Budget
from genpipe.training.text_to_image import SIZE, choose_accelerator, new_model, train, trained_model

TOKENS = 32
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
        help="start from its weights: all --minutes are for the text encoder and the denoiser, its autoencoder is kept",
    )
    parser.add_argument(
        "--decoder-minutes",
        type=float,
        default=0.0,
        help="with --init: time before that for the autoencoder's decoder alone (%(default)s)",
    )
    arguments = parser.parse_args(given)
    if arguments.init is None and arguments.decoder_minutes:
        parser.error("--decoder-minutes needs --init, the checkpoint whose decoder is to be trained")
    if unknown := [name for name in arguments.concepts if name not in names()]:
        parser.error(f"--concepts {unknown[0]!r} is not one of the {len(names())} of genpipe.scenes")
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def run(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    accelerator = choose_accelerator()
    minutes = arguments.minutes
    if arguments.init is None:
        vae_minutes = minutes * arguments.vae_share
        budgets = {"autoencoder": Budget(minutes=vae_minutes), "denoiser": Budget(minutes=minutes - vae_minutes)}
        model = new_model(arguments.out, corpus(), tokens=TOKENS)
    else:
        stages = {"decoder": arguments.decoder_minutes, "denoiser": minutes}
        budgets = {stage: Budget(minutes=time) for stage, time in stages.items() if time}
        model = trained_model(arguments.out, arguments.init)
    train(
        replace(model, defaults={**model.defaults, "concepts": list(arguments.concepts)}),
        Scenes(accelerator.device, concepts=arguments.concepts, seed=arguments.seed),
        out=arguments.out,
        accelerator=accelerator,
        autoencoder=budgets.get("autoencoder"),
        decoder=budgets.get("decoder"),
        denoiser=budgets.get("denoiser"),
        prompts=SAMPLES,
        seed=arguments.seed,
    )


class Scenes:
    """The procedural world as pictures to train on, drawn on the device that trains."""

    size, period = SIZE, None

    def __init__(self, device: torch.device, *, concepts: Sequence[str], seed: int) -> None:
        self._composer, self._pool, self._seed = Composer(device, SIZE), concepts, seed

    def draw(self, rng: random.Random, count: int) -> Tensor:
        return self._composer.render([sample(rng, self._pool) for _ in range(count)])

    def sequence(self, start: int, stop: int) -> tuple[Tensor, Sequence[Captioned]]:
        scenes = [sample(random.Random(f"{self._seed}/{index}"), self._pool) for index in range(start, stop)]
        return self._composer.render(scenes), [partial(word, scene) for scene in scenes]


def word(scene: Scene, rng: random.Random) -> str:
    """One caption of a scene: two in three English, the rest Russian."""
    language = "ru" if rng.random() < 0.33 else "en"
    return caption(scene, rng, language=language)


if __name__ == "__main__":
    main()
