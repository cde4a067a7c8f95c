"""`genpipe train`: a checkpoint from your own images and their captions."""

import argparse
from pathlib import Path

from genpipe.cli.options import reader
from genpipe.fields import Number, Whole

MINUTES = Number(1e6, "60 is an hour")
VAE_SHARE = 0.3  # of the time: of the whole autoencoder, or of the decoder of one that was trained before

EXAMPLES = """\
examples:
  genpipe train photos --out runs/photos --minutes 60
  genpipe train dragons --init genpipe/embedded --minutes 5 --out runs/dragons
  genpipe "a caption" --model runs/photos/checkpoint

Killed and started again by the same command, it continues. samples.png in --out shows how far it is.
"""


def train_command(parser: argparse.ArgumentParser) -> None:
    """train on your own images: a folder with captions in metadata.jsonl, or in a .txt beside each image"""
    parser.usage = "%(prog)s DIR --out DIR [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_train)
    parser.add_argument("folder", type=Path, metavar="DIR", help="images and their captions")
    group = parser.add_argument_group("training")
    group.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder of states, samples and the checkpoint"
    )
    group.add_argument(
        "--minutes", type=reader("minutes", MINUTES), default=60.0, metavar="X", help="how long (default: 60)"
    )
    group.add_argument("--init", metavar="NAME", help="start from the weights of this checkpoint (default: fresh ones)")
    group.add_argument("--size", type=reader("size", Whole(8, 8192, "128 is usual")), metavar="PX",
                       help="side of the images in pixels (default: that of --init's, or 128)")  # fmt: skip
    group.add_argument("--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the best there is)")


def _train(args: argparse.Namespace) -> int:
    import random

    import torch

    from genpipe.request import check_size
    from genpipe.training.folder import read_folder
    from genpipe.training.loop import Budget, choose_accelerator
    from genpipe.training.text_to_image import (
        RATE,
        SIZE,
        VAE_CONFIG,
        new_model,
        train,
        trained_model,
    )

    torch.manual_seed(0)
    accelerator = choose_accelerator(args.device)
    first, rest = (Budget(minutes=args.minutes * share) for share in (VAE_SHARE, 1 - VAE_SHARE))
    # Reading the folder takes a while: what can be wrong without it is found first.
    model = None
    if args.init is not None:
        model = trained_model(args.out, args.init, size=args.size)
        size = model.defaults["height"]
    else:
        size = SIZE if args.size is None else args.size
        check_size(size, size, VAE_CONFIG.factor)
    images = read_folder(args.folder, size)
    print(images.report)
    if model is None:
        model = new_model(args.out, images.captions, size=size)
    captions = sorted(set(images.captions))
    try:
        train(
            model,
            images,
            out=args.out,
            accelerator=accelerator,
            autoencoder=first if args.init is None else None,
            decoder=first if args.init is not None else None,
            denoiser=rest,
            rate=RATE if args.init is None else RATE / 2,
            prompts=random.Random(0).sample(captions, min(12, len(captions))),
        )
    except FloatingPointError as error:
        raise RuntimeError(f"{error}; what {args.out} holds is intact") from None
    print(f'genpipe "{captions[0]}" --model {args.out / "checkpoint"}')
    return 0
