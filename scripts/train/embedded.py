"""Train the embedded model: the autoencoder, the text encoder, then the denoiser, on images that genpipe draws.

    python -m scripts.train.embedded --out runs/embedded --minutes 120
    python -m scripts.train.embedded --out runs/anew --minutes 120 --vae genpipe/embedded --vae-share 0
    python -m scripts.train.embedded --out runs/further --minutes 120 --init genpipe/embedded --seed 1
    python -m scripts.train.embedded --out runs/decoder --minutes 0 --init genpipe/embedded --decoder-minutes 30
    python -m scripts.train.embedded --out runs/large --minutes 0 --init runs/anew/checkpoint --growth-minutes 90
    python -m scripts.train.embedded --out runs/quick --minutes 0 --init genpipe/embedded --guidance-minutes 60
    python -m scripts.train.embedded --out runs/gpu --recipe gpu --minutes 9

Killed and started again with the same --out, it continues. Samples to look at appear in --out as it goes, and the
checkpoint in --out/checkpoint, in the layout of genpipe/embedded. With --recipe all of it is done within --minutes, images of
twice the size included, and the judge's figures in --out/log.txt.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from genpipe.checkpoints import load_checkpoint
from genpipe.hardware import choose_device
from genpipe.scenes.captions import corpus
from genpipe.scenes.concepts import names
from genpipe.training.loop import Budget, choose_accelerator
from genpipe.training.text_to_image import BATCH, RATE, new_model, train, trained_model
from scripts.train.recipe import RECIPES, carry_out, without_gpu
from scripts.train.scenes import GPU_BATCH, SAMPLES, TOKENS, Scenes, of_scenes, read_accuracy, teach


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of states, samples, checkpoint")
    parser.add_argument("--minutes", type=float, default=120, help="time for the whole training (%(default)s)")
    parser.add_argument(
        "--recipe", choices=RECIPES, help="share the minutes among all stages, in batches for this kind of machine"
    )
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
        default=names(),
        metavar="A,B",
        help="learn only these concepts of the world (default: all)",
    )
    parser.add_argument(
        "--harder",
        type=Path,
        metavar="FILE",
        help="what evaluate --json printed: things that it found wrong are drawn up to four times as often",
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
    parser.add_argument(
        "--guidance-minutes",
        type=float,
        default=0.0,
        help="with --init: time after that for a denoiser that gives at once what it gives with guidance (%(default)s)",
    )
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(given)
    if arguments.recipe is not None:
        own = ("init", "vae", "vae_share", "text_share", "decoder_minutes", "growth_minutes", "guidance_minutes")
        for name in own:
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(f"--recipe has stages of its own: leave --{name.replace('_', '-')} out")
    if arguments.init is None and (arguments.decoder_minutes or arguments.growth_minutes):
        parser.error("--decoder-minutes and --growth-minutes need --init, the checkpoint whose autoencoder is trained")
    if arguments.init is None and arguments.guidance_minutes:
        parser.error("--guidance-minutes needs --init, the checkpoint whose denoiser is distilled")
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
    out, minutes, seed = arguments.out, arguments.minutes, arguments.seed
    accuracy = None if arguments.harder is None else read_accuracy(arguments.harder)
    gpu = choose_device(arguments.device).type == "cuda"
    accelerator = choose_accelerator(arguments.device)
    if arguments.recipe is not None:
        recipe = RECIPES[arguments.recipe]
        if not gpu and arguments.device is None:
            raise ValueError(without_gpu(arguments.recipe, recipe, minutes, accelerator))
        carry_out(recipe, out, minutes=minutes, concepts=arguments.concepts, accelerator=accelerator, seed=seed,
                limit=minutes, accuracy=accuracy)  # fmt: skip
        return
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
        stages = {"growth": arguments.growth_minutes, "decoder": arguments.decoder_minutes, "denoiser": minutes,
                  "guidance": arguments.guidance_minutes}  # fmt: skip
        budgets = {stage: Budget(minutes=time) for stage, time in stages.items() if time}
        model = trained_model(out, arguments.init, grow="growth" in budgets)
    train(
        of_scenes(model, arguments.concepts),
        Scenes(model.defaults["height"], concepts=arguments.concepts, seed=seed, accuracy=accuracy),
        out=out,
        accelerator=accelerator,
        autoencoder=budgets.get("autoencoder"),
        growth=budgets.get("growth"),
        decoder=budgets.get("decoder"),
        denoiser=budgets.get("denoiser"),
        guidance=budgets.get("guidance"),
        freeze_text=True,
        rate=RATE if arguments.init is None else RATE / 2,
        prompts=SAMPLES,
        seed=seed,
        batch=GPU_BATCH if gpu else BATCH,
    )


if __name__ == "__main__":
    main()
