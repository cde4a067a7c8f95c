"""Train the scene models that judge pictures, on scenes that genpipe draws and on nothing else.

    python scripts/train_judge.py --out runs/judge --minutes 40
    python scripts/train_judge.py --out runs/second --minutes 12 --trunk plain --seed 1

Killed and started again with the same --out, it continues.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from genpipe.images import to_pil
from genpipe.scenes import COLOURS, SETTINGS, names, sample
from genpipe.scenes.compose import Composer
from genpipe.training.judge import ScenePool, judge_loss
from genpipe.training.loop import Budget, fit
from genpipe.training.text_to_image import choose_accelerator
from genpipe.vision.evaluation import measure, summary
from genpipe.vision.judge import Judge
from genpipe.vision.scene_model import TRUNKS, SceneModel

RATE = 2e-3
UNSEEN = 400  # scenes that every checkpoint is measured on, a quarter of held-out combinations


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/judge"), help="folder of states and weights")
    parser.add_argument("--minutes", type=float, default=40, help="time for the training (%(default)s)")
    parser.add_argument("--trunk", choices=TRUNKS, default="resnet18", help="architecture (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn (%(default)s)")
    arguments = parser.parse_args(given)
    torch.manual_seed(arguments.seed)
    model = SceneModel(arguments.trunk, concepts=len(names()), colours=len(COLOURS), settings=len(SETTINGS))
    accelerator = choose_accelerator()
    rng = random.Random("unseen")
    scenes = [sample(rng, held=i % 4 == 0) for i in range(UNSEEN)]
    unseen = to_pil(Composer().render(scenes))

    def keep(averaged: nn.Module) -> None:
        assert isinstance(averaged, SceneModel)
        judge = Judge(averaged)
        judge.save(arguments.out / "model.safetensors")
        figures = summary(measure(judge, unseen, scenes))
        accelerator.print("\n" + "  ".join(f"{name} {value:.1%}" for name, value in figures.items()))

    fit(
        model.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        judge_loss(ScenePool(arguments.seed)),
        directory=arguments.out,
        budget=Budget(minutes=arguments.minutes),
        peak_rate=RATE,
        accelerator=accelerator,
        seed=arguments.seed,
        on_checkpoint=keep,
    )


if __name__ == "__main__":
    main()
