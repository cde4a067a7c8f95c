"""Train on your own pictures: a folder with captions in metadata.jsonl, or in a .txt beside each picture.

    python scripts/train_text_to_image.py photos --out runs/photos --minutes 60
    genpipe "a caption" --model runs/photos/checkpoint

Killed and started again by the same command, it continues. Samples to look at appear in --out as it goes.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from genpipe.request import check_size
from genpipe.training.folder import read_folder
from genpipe.training.loop import Budget
from genpipe.training.text_to_image import RATE, SIZE, VAE_CONFIG, choose_accelerator, new_model, train, trained_model

VAE_SHARE = 0.3  # of the time: of the whole autoencoder, or of the decoder of one that was trained before


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="pictures and their captions")
    parser.add_argument("--out", type=Path, required=True, help="folder of states, samples and the checkpoint")
    parser.add_argument("--minutes", type=float, default=60, help="time for the whole training (%(default)s)")
    parser.add_argument("--init", metavar="CHECKPOINT", help="start from its weights instead of from fresh ones")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the pictures, in pixels (%(default)s)")
    try:
        run(parser.parse_args(given))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped: the same command continues from the last checkpoint") from None


def run(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    accelerator = choose_accelerator()
    first, rest = (Budget(minutes=arguments.minutes * share) for share in (VAE_SHARE, 1 - VAE_SHARE))
    # Reading the folder takes a while: what can be wrong without it is found before.
    model = None
    if arguments.init is not None:
        model = trained_model(arguments.out, arguments.init, size=arguments.size)
    check_size(arguments.size, arguments.size, VAE_CONFIG.factor)
    pictures = read_folder(arguments.folder, arguments.size, device=accelerator.device)
    print(pictures.report)
    if model is None:
        model = new_model(arguments.out, pictures.captions, size=arguments.size)
    captions = sorted(set(pictures.captions))
    train(
        model,
        pictures,
        out=arguments.out,
        accelerator=accelerator,
        autoencoder=first if arguments.init is None else None,
        decoder=first if arguments.init is not None else None,
        denoiser=rest,
        rate=RATE if arguments.init is None else RATE / 2,
        prompts=random.Random(0).sample(captions, min(12, len(captions))),
    )
    print(f'genpipe "{captions[0]}" --model {arguments.out / "checkpoint"}')


if __name__ == "__main__":
    main()
