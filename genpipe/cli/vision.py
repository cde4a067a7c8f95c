"""`genpipe vision`: a classifier trained on your own images, or one looked into."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from genpipe.cli.inspect import inspect_command
from genpipe.cli.options import reader
from genpipe.cli.train import MINUTES
from genpipe.fields import Number, Whole

if TYPE_CHECKING:
    from genpipe.training.loop import Budget


def vision_command(parser: argparse.ArgumentParser) -> None:
    """train a classifier on your own images, or look inside one"""
    parser.usage = "%(prog)s COMMAND ..."
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, add in (("train", train_command), ("inspect", inspect_command)):
        line = add.__doc__ or ""
        prog = f"{parser.prog} {name}"
        add(
            commands.add_parser(
                name, prog=prog, help=line, description=f"{line[:1].upper()}{line[1:]}.", allow_abbrev=False
            )
        )


def train_command(parser: argparse.ArgumentParser) -> None:
    """train a classifier on a folder that holds a folder of images for each class"""
    parser.usage = "%(prog)s DIR [options]"
    parser.set_defaults(run=_train)
    parser.add_argument("directory", metavar="DIR",
                        help="a folder for each class, or train and val with these in them")  # fmt: skip
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", metavar="NAME", help="resnet50, alexnet, ... (default: that of --from, or resnet18)"
    )
    group.add_argument("--from", dest="weights", metavar="FILE", help="a .safetensors file or its URL to start from")
    group.add_argument("--allow-pickle", action="store_true", help="read a --from that is not safetensors (.pth)")
    group.add_argument("--freeze", metavar="LAYERS",
                       help="what of --from stays as it is: features (all but the head), or layers as in layer1,layer2")  # fmt: skip
    group.add_argument("--size", type=reader("size", Whole(8, 8192, "224 is usual")), metavar="PX",
                       help="side of the images (default: what suits the model)")  # fmt: skip
    group = parser.add_argument_group("training")
    group.add_argument("-o", "--out", type=Path, default=Path("runs/vision"), metavar="DIR",
                       help="where state, log and the best weights go; begun again, it continues (default: %(default)s)")  # fmt: skip
    group.add_argument("--minutes", type=reader("minutes", MINUTES), metavar="X", help="how long (default: 30)")
    group.add_argument("--steps", type=reader("steps", Whole(1, 10**9, "it is the number of batches")), metavar="N",
                       help="how many batches, in place of --minutes")  # fmt: skip
    group.add_argument("--batch", type=reader("batch", Whole(2, 65536, "32 is usual")), default=32, metavar="N",
                       help="images per step (default: %(default)s)")  # fmt: skip
    group.add_argument("--smoothing", type=reader("smoothing", Number(1.0, "0.1 is usual")), default=0.1, metavar="X",
                       help="of the labels (default: %(default)s)")  # fmt: skip
    group.add_argument("--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    group.add_argument("-s", "--seed", type=reader("seed", Whole(0, 2**63 - 1, "any will do")), default=0, metavar="N",
                       help="(default: %(default)s)")  # fmt: skip


def _train(args: argparse.Namespace) -> int:
    if args.freeze is not None and args.weights is None:
        raise ValueError("--freeze keeps what was learned before: give it with --from FILE")
    from genpipe.training.image_folder import BEST, train_on_folder
    from genpipe.training.loop import choose_accelerator

    try:
        train_on_folder(
            args.directory,
            args.out,
            budget=_budget(args.minutes, args.steps),
            accelerator=choose_accelerator(args.device),
            architecture=args.model,
            weights=args.weights,
            frozen=_frozen(args.freeze),
            allow_pickle=args.allow_pickle,
            size=args.size,
            batch=args.batch,
            smoothing=args.smoothing,
            seed=args.seed,
            on_images=lambda report: print(report, file=sys.stderr),
            on_validation=_tell,
        )
    except FloatingPointError as error:
        raise RuntimeError(f"{error}; what {args.out} holds is intact") from None
    print(args.out / BEST)
    return 0


def _tell(error: float, better: bool) -> None:
    note = ", the best so far" if better else ""
    print(f"top-1 error on the held-out images: {error:.1%}{note}", file=sys.stderr)


def _frozen(layers: str | None) -> list[str] | None:
    if layers is None:
        return []
    return None if layers == "features" else layers.split(",")


def _budget(minutes: float | None, steps: int | None) -> "Budget":
    from genpipe.training.loop import Budget

    if minutes is not None and steps is not None:
        raise ValueError("two budgets: give --minutes or --steps, not both")
    return Budget(minutes=30.0 if minutes is None and steps is None else minutes, steps=steps)
