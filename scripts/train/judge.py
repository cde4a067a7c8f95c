"""Train the models that judge images, on scenes that genpipe draws and on nothing else.

    python -m scripts.train.judge --out runs/judges --minutes 95
    python -m scripts.train.judge --out runs/critic --minutes 10 --critic

Three stages: the judge, a segmentation on its features, and a second judge of another architecture and from another seed,
to check on choices made by the first. With --critic there is one stage: the critic, by which `genpipe classify` goes, goes on
from the shipped judge, half of its scenes showing a thing in another colour. The judges that measure models stay as they are.
Each leaves its weights in --out; copy them to genpipe/embedded/judge to ship them.
Killed and started again with the same --out, it continues.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from genpipe.embedded import JUDGES
from genpipe.images import to_pil
from genpipe.judge.evaluation import measure, summary
from genpipe.judge.scene_judge import Judge
from genpipe.judge.scene_segmentation import CATEGORIES, MaskHead, Segmentation
from genpipe.scenes import COLOURS, SETTINGS, names, sample
from genpipe.scenes.compose import Composer
from genpipe.training.judge import ScenePool, category_maps, judge_loss, segmentation_loss
from genpipe.training.loop import Budget, Randomness, choose_accelerator, fit
from genpipe.vision.metrics import confusion_matrix, mean_iou
from genpipe.vision.scene_model import SceneModel

SHARES = {"judge": 0.6, "segmentation": 0.12, "second": 0.28}  # of the time
RATE = 2e-3
COLOURED = 0.5  # of the critic's scenes


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/judges"), help="folder of states and weights")
    parser.add_argument("--minutes", type=float, default=95, help="time for all stages (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn (%(default)s)")
    parser.add_argument("--unseen", type=int, default=400, metavar="N",
                        help="scenes that every checkpoint is measured on, a quarter of held-out combinations (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--pool", type=int, default=8192, metavar="N", help="scenes drawn before the first step (%(default)s)"
    )
    parser.add_argument("--critic", action="store_true", help="train the critic alone, from the shipped judge")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(given)
    for name in ("unseen", "pool"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)} is too few: use 1 or more")
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes} is too short: give more than 0")
    try:
        run(arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error


def run(arguments: argparse.Namespace) -> None:
    accelerator = choose_accelerator(arguments.device)
    out, seed, unseen = arguments.out, arguments.seed, arguments.unseen

    def stage(
        name: str,
        model: nn.Module,
        loss: Callable[[ScenePool], Callable[[nn.Module, int, Randomness], Tensor]],
        seed: int,
        keep: Callable[[nn.Module], None],
    ) -> None:
        critic = name == "critic"
        fit(
            model.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
            loss(ScenePool(seed, initial=arguments.pool, coloured=COLOURED if critic else 0.0)),
            directory=out / name,
            budget=Budget(minutes=arguments.minutes * (1.0 if critic else SHARES[name])),
            peak_rate=RATE / 4 if critic else RATE,
            accelerator=accelerator,
            seed=seed,
            on_checkpoint=keep,
        )

    def fresh(trunk: str, seed: int) -> SceneModel:
        torch.manual_seed(seed)
        return SceneModel(trunk, concepts=len(names()), colours=len(COLOURS), settings=len(SETTINGS))

    def train_judge(name: str, model: SceneModel, seed: int) -> Judge:
        file = out / f"{'model' if name == 'judge' else name}.safetensors"
        rng = random.Random("unseen")
        scenes = [sample(rng, held=i % 4 == 0) for i in range(unseen)]
        images = to_pil(Composer().render(scenes))

        def keep(averaged: nn.Module) -> None:
            assert isinstance(averaged, SceneModel)
            judge = Judge(averaged)
            judge.save(file)
            figures = summary(measure(judge, images, scenes))
            accelerator.print("  ".join(f"{name} {value:.1%}" for name, value in figures.items()))

        stage(name, model, judge_loss, seed, keep)
        return Judge.load(file, device=accelerator.device)

    def train_segmentation(judge: Judge) -> None:
        torch.manual_seed(seed)
        composer = Composer()
        rng = random.Random("unseen")
        pixels, truths = composer.truth([sample(rng) for _ in range(unseen)])
        true, images = category_maps(truths, composer.size), to_pil(pixels)

        def keep(averaged: nn.Module) -> None:
            assert isinstance(averaged, MaskHead)
            segmentation = Segmentation(averaged, judge)
            segmentation.save(out / "segmentation.safetensors")
            iou = mean_iou(confusion_matrix(segmentation(images), true.long(), len(CATEGORIES)))
            accelerator.print(f"mean IoU {iou:.1%}")

        stage("segmentation", MaskHead(judge.model.trunk), segmentation_loss, seed, keep)

    if arguments.critic:
        shipped = Judge.load(JUDGES / "model.safetensors", device="cpu").model
        train_judge("critic", shipped.requires_grad_(True).train(), seed)
        return
    train_segmentation(train_judge("judge", fresh("resnet18", seed), seed))
    train_judge("second", fresh("plain", seed + 1), seed + 1)


if __name__ == "__main__":
    main()
