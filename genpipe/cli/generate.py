"""`genpipe PROMPT`: its arguments, its checks before a network is loaded, and where the pictures go."""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genpipe.cli.output import report
from genpipe.cli.values import as_number, as_whole
from genpipe.cli.vocabulary import name_unknown_words
from genpipe.messages import quoted
from genpipe.sampling.speed import SPEEDS

EXAMPLES = """\
examples:
  genpipe "pirate ship"
  genpipe "pirate ship" -n 4 --seed 7 --outdir ships
  genpipe "a castle at night" --steps 20 --size 512x512 --output castle-{seed}.png -m DIR_OR_HUB_ID
  genpipe --from-image pirate-ship.png --steps 50

The spellings of CompVis's scripts and of sd-cli work too (--ddim_steps, --cfg-scale, ...).
"""
# For checking what was given before the checkpoint, which knows the defaults, is there.
_STAND_INS = {"seed": 0, "steps": 1, "guidance_scale": 1.0, "height": 8, "width": 8}
_SETTINGS = (
    *("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "guidance_rescale"),
    *("height", "width", "sampler", "clip_skip", "speed"),
)


def generate_command(parser: argparse.ArgumentParser) -> None:
    """draw pictures from a prompt"""
    parser.usage = "%(prog)s PROMPT [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_generate)
    group = parser.add_argument_group("picture")
    group.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to draw, in quotes")
    group.add_argument("-p", "--prompt", dest="prompt_option", help=argparse.SUPPRESS)
    _option(group, "-N", "--negative-prompt", "--neg", metavar="TEXT", help="what to keep out of it")
    _option(group, "-n", "--num-images", "--n", "--n-samples", "-b", "--batch-count", dest="n", type=as_whole, default=1,
            metavar="N", help="how many pictures (default: 1)")  # fmt: skip
    _option(group, "--best-of", type=as_whole, default=1, metavar="N",
            help="draw N for each picture and keep the one that shows the prompt best (default: 1)")  # fmt: skip
    _option(group, "--judge", metavar="NAME",
            help="a CLIP model to choose by, a folder or a hub id (default: the embedded model's own judge)")  # fmt: skip
    _option(group, "-s", "--seed", type=as_whole, metavar="N",
            help="0 to 2^64-1: the same seed draws the same picture; picture k takes N + k (default: drawn and shown)")  # fmt: skip
    _option(group, "--size", type=_size, metavar="WxH", help="in pixels (default: what the model was trained on)")
    _option(group, "-H", "--height", "--H", type=as_whole, metavar="PX", help="the height alone")
    _option(group, "-W", "--width", "--W", type=as_whole, metavar="PX", help="the width alone")
    _option(group, "--from-image", metavar="PNG",
            help="draw again what this file says made it; the other options change it")  # fmt: skip

    group = parser.add_argument_group("sampling (default: what suits the model)")
    _option(group, "--steps", "--ddim-steps", type=as_whole, metavar="N", help="solver steps, 1 to 1000")
    _option(group, "--guidance-scale", "--scale", "--cfg-scale", type=as_number, metavar="X",
            help="how closely to follow the prompt; 1 turns guidance off")  # fmt: skip
    _option(
        group, "--guidance-rescale", type=as_number, metavar="X", help="0 to 1, against over-exposure at high scales"
    )
    _option(group, "--sampler", "--sampling-method", metavar="NAME",
            help="ddim, euler_a, dpmpp_2m_karras, ...; the names of diffusers and A1111 work too")  # fmt: skip
    _option(group, "--clip-skip", type=as_whole, metavar="N", help="last layers of the text encoder to leave out")
    _option(group, "--speed", metavar="NAME", choices=tuple(SPEEDS),
            help="exact (default), or balanced and draft: faster, and not quite the same picture")  # fmt: skip
    _option(group, "--deterministic", action="store_true", help="bitwise the same whatever -n is; slower")

    group = parser.add_argument_group("model")
    _option(group, "-m", "--model", "--ckpt", metavar="NAME",
            help="a folder in the diffusers layout or a hub id (default: the small one that comes with genpipe)")  # fmt: skip
    _option(group, "--revision", metavar="NAME", help="branch, tag or commit on the hub")
    _option(group, "--variant", metavar="NAME", help="fp16 reads the files of that name")
    _option(group, "--tiny-vae", "--taesd", metavar="DIR", help="a tiny autoencoder (TAESD), which then decodes drafts")
    _option(group, "--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    _option(group, "--dtype", metavar="NAME", choices=("fp32", "bf16", "fp16", "float32", "bfloat16", "float16"),
            help="fp32, bf16 or fp16 (default: the fastest on the device)")  # fmt: skip
    _option(group, "--low-memory", action="store_true",
            help="hold the text encoder and the autoencoder in memory only while they run")  # fmt: skip
    _option(group, "--int8", action=argparse.BooleanOptionalAction,
            help="multiply in int8 on a CPU: faster, and not quite the same picture (default: no)")  # fmt: skip

    group = parser.add_argument_group("output")
    _option(group, "-o", "--output", metavar="PATH",
            help=".png, .jpg or .webp, overwritten; {seed}, {index} or %%03d (from 0) name several "
                 "(default: pirate-ship.png, then pirate-ship-2.png, ...)")  # fmt: skip
    _option(group, "--outdir", metavar="DIR", help="where to save, made if missing (default: here)")
    _option(group, "-q", "--quiet", action="store_true", help="no progress and no seed on stderr")


def _generate(args: argparse.Namespace) -> int:
    from genpipe.filenames import file_stem
    from genpipe.images import save_image, save_new
    from genpipe.metadata import NOT_REQUESTED, read_metadata
    from genpipe.request import Request, check_best_of, random_seed, seeds_for

    if args.prompt is not None and args.prompt_option is not None:
        raise ValueError("two prompts: give PROMPT or --prompt, not both")
    if args.size is not None and not args.height is args.width is None:
        raise ValueError("two sizes: give --size or --height and --width, not both")
    args.prompt = args.prompt_option if args.prompt is None else args.prompt
    args.width, args.height = args.size or (args.width, args.height)
    settings = {key: value for key in _SETTINGS if (value := getattr(args, key)) is not None}
    model = args.model
    if args.from_image is not None:
        made = read_metadata(args.from_image)
        model = model or made.get("model")
        args.dtype = args.dtype or made.get("dtype")
        args.int8 = made.get("int8") if args.int8 is None else args.int8
        settings = {**{key: made[key] for key in made if key not in NOT_REQUESTED}, **settings}
    if "prompt" not in settings:
        raise ValueError('nothing to draw: give a prompt, as in genpipe "pirate ship"')
    Request.from_dict({**_STAND_INS, **settings})
    check_best_of(args.best_of)
    drawn = "seed" not in settings
    seeds = seeds_for(settings.pop("seed", random_seed()), args.n)
    if args.best_of > 1:  # each picture is chosen from so many seeds
        seeds = seeds_for(seeds[0], args.n * args.best_of)[:: args.best_of]
    prompt = settings.pop("prompt")
    paths = _output_paths(args.output, args.outdir, seeds)

    if model in (None, "embedded"):
        name_unknown_words(prompt)

    from genpipe.pipeline import BATCH, Pipeline

    pipeline = Pipeline.from_pretrained(
        None if model == "embedded" else model,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        variant=args.variant,
        tiny_vae=args.tiny_vae,
        low_memory=args.low_memory,
        int8=bool(args.int8),
    )
    if drawn and not args.quiet:
        print(f"seed {seeds[0]}", file=sys.stderr)
    # Batch by batch, so that what is done is on the disk when something fails.
    size = max(1, BATCH // args.best_of)
    for start in range(0, args.n, size):
        batch = seeds[start : start + size]
        images = pipeline(
            prompt,
            n=len(batch),
            seeds=batch,
            deterministic=args.deterministic,
            best_of=args.best_of,
            judge=args.judge,
            progress=not args.quiet,
            **settings,
        )
        for index, image in enumerate(images, start):
            if paths:
                save_image(image, paths[index])
            report(paths[index] if paths else save_new(image, args.outdir or ".", file_stem(prompt)))
    return 0


def _output_paths(output: str | None, outdir: str | None, seeds: Sequence[int]) -> list[Path] | None:
    """Where each picture goes, None for names after the prompt; refused here if it cannot be written."""
    from genpipe.files import sweep
    from genpipe.images import check_suffix

    folder = Path(outdir or ".")
    if outdir is not None:
        folder.mkdir(parents=True, exist_ok=True)
    paths = None
    if output is not None:
        paths = [folder / _numbered(output, seed, index) for index, seed in enumerate(seeds)]
        if len(set(paths)) < len(seeds):
            stem, suffix = os.path.splitext(output)
            fix = f"try {stem}-{{index}}{suffix}"
            raise ValueError(f"--output {output} names one file for {len(seeds)} pictures: {fix}")
        for path in paths:
            check_suffix(path)
            if path.is_dir():
                raise ValueError(f"--output {path} is a folder: save into it with --outdir {path}")
            if not path.parent.is_dir():
                raise ValueError(f"--output {path} is in a folder that does not exist: make it, or use --outdir")
    for parent in {path.parent for path in paths} if paths else {folder}:
        sweep(parent)
        try:
            tempfile.TemporaryFile(dir=parent).close()
        except OSError as error:
            raise OSError(error.errno, f"cannot write into this folder: {error.strerror}", str(parent)) from error
    return paths


def _numbered(pattern: str, seed: int, index: int) -> str:
    named = pattern.replace("{seed}", str(seed)).replace("{index}", str(index))
    return re.sub(r"%(\d{0,2})d", lambda match: f"{index:{match[1]}d}", named)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a size: write it as WxH, for example 512x768")
    return int(match[1]), int(match[2])


def _option(group: Any, *names: str, **kwargs: Any) -> None:
    """Add an option. Its names up to the first long one are in the help; the others, and a_b for a-b, work unseen."""
    shown = next(index for index, name in enumerate(names) if name.startswith("--") and len(name) > 3) + 1
    action = group.add_argument(*names[:shown], **kwargs)
    # The same spelling with underscores is what CompVis and diffusers use.
    hidden = [*names[shown:], *(name.replace("-", "_").replace("__", "--", 1) for name in names if "-" in name[2:])]
    kwargs |= {"dest": action.dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    if hidden:
        group.add_argument(*hidden, **kwargs)
