"""Train the models that judge pictures, on scenes that genpipe draws and on nothing else.

    python -m scripts.train.judge --out runs/judges --minutes 95

Three stages: the judge, a segmentation on its features, and a second judge of another architecture and from another seed,
to check on choices made by the first. Each leaves its weights in --out; copy them to genpipe/embedded/judge to ship them.
Killed and started again with the same --out, it continues.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from genpipe.images import to_pil
from genpipe.judge.evaluation import measure, summary
from genpipe.judge.scene_judge import Judge
from genpipe.judge.scene_segmentation import CATEGORIES, MaskHead, Segmentation
from genpipe.scenes import COLOURS, SETTINGS, names, sample
from genpipe.scenes.compose import Composer
from genpipe.training.judge import ScenePool, category_maps, judge_loss, segmentation_loss
from genpipe.training.loop import Budget, fit
from genpipe.training.text_to_image import choose_accelerator
from genpipe.vision.metrics import confusion_matrix, mean_iou
from genpipe.vision.scene_model import SceneModel

SHARES = {"judge": 0.6, "segmentation": 0.12, "second": 0.28}  # of the time
RATE = 2e-3
UNSEEN = 400  # scenes that every checkpoint is measured on, a quarter of held-out combinations


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/judges"), help="folder of states and weights")
    parser.add_argument("--minutes", type=float, default=95, help="time for all stages (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn (%(default)s)")
    arguments = parser.parse_args(given)
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes} is too short: give more than 0")
    try:
        run(arguments.out, arguments.minutes, arguments.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def run(out: Path, minutes: float, seed: int) -> None:
    accelerator = choose_accelerator()
    budgets = {stage: Budget(minutes=minutes * share) for stage, share in SHARES.items()}
    judge = train_judge("resnet18", out / "judge", out / "model.safetensors", budgets["judge"], accelerator, seed)
    train_segmentation(judge, out, budgets["segmentation"], accelerator, seed)
    train_judge("plain", out / "second", out / "second.safetensors", budgets["second"], accelerator, seed + 1)


def train_judge(trunk: str, directory: Path, file: Path, budget: Budget, accelerator: Accelerator, seed: int) -> Judge:
    torch.manual_seed(seed)
    model = SceneModel(trunk, concepts=len(names()), colours=len(COLOURS), settings=len(SETTINGS))
    rng = random.Random("unseen")
    scenes = [sample(rng, held=i % 4 == 0) for i in range(UNSEEN)]
    unseen = to_pil(Composer().render(scenes))

    def keep(averaged: nn.Module) -> None:
        assert isinstance(averaged, SceneModel)
        judge = Judge(averaged)
        judge.save(file)
        figures = summary(measure(judge, unseen, scenes))
        accelerator.print("\n" + "  ".join(f"{name} {value:.1%}" for name, value in figures.items()))

    train(model, judge_loss(ScenePool(seed)), directory, budget, accelerator, seed, keep)
    return Judge.load(file)


def train_segmentation(judge: Judge, out: Path, budget: Budget, accelerator: Accelerator, seed: int) -> None:
    torch.manual_seed(seed)
    composer = Composer()
    rng = random.Random("unseen")
    pixels, truths = composer.truth([sample(rng) for _ in range(UNSEEN)])
    true, unseen = category_maps(truths, composer.size), to_pil(pixels)

    def keep(averaged: nn.Module) -> None:
        assert isinstance(averaged, MaskHead)
        segmentation = Segmentation(averaged, judge)
        segmentation.save(out / "segmentation.safetensors")
        found = segmentation(unseen)
        iou = mean_iou(confusion_matrix(found, true.long(), len(CATEGORIES)))
        accelerator.print(f"\nmean IoU {iou:.1%}")

    train(
        MaskHead(judge.model.trunk),
        segmentation_loss(ScenePool(seed)),
        out / "segmentation",
        budget,
        accelerator,
        seed,
        keep,
    )


def train(
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    directory: Path,
    budget: Budget,
    accelerator: Accelerator,
    seed: int,
    keep: Callable[[nn.Module], None],
) -> None:
    fit(
        model.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        loss,
        directory=directory,
        budget=budget,
        peak_rate=RATE,
        accelerator=accelerator,
        seed=seed,
        on_checkpoint=keep,
    )


if __name__ == "__main__":
    main()
