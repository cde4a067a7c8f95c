"""`genpipe PROMPT`: its arguments, its checks before a network is loaded, and where the images go."""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genpipe.cli.options import add_fields, given_fields, option, reader, size
from genpipe.cli.output import report
from genpipe.cli.vocabulary import name_unknown_words
from genpipe.fields import settings_of
from genpipe.messages import listed, one_line
from genpipe.request import BEST_OF, COUNT, FROM_IMAGE, IMAGE, SAMPLING, SETTINGS, Request
from genpipe.spec import ModelSpec

EXAMPLES = """\
examples:
  genpipe "pirate ship"
  genpipe "pirate ship" -n 4 --seed 7 --outdir ships
  genpipe "a castle at night" --steps 20 --size 512x512 --output castle-{seed}.png -m DIR_OR_HUB_ID
  genpipe --from-image pirate-ship.png --steps 50

The spellings of CompVis's scripts and of sd-cli work too (--ddim_steps, --cfg-scale, ...).
"""


def generate_command(parser: argparse.ArgumentParser) -> None:
    """draw images from a prompt"""
    parser.usage = "%(prog)s PROMPT [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_generate)
    described = settings_of(Request)
    of_image, of_sampling = ([name for name in SETTINGS if described[name].group == g] for g in (IMAGE, SAMPLING))

    group = parser.add_argument_group("image")
    group.add_argument("prompt", nargs="?", metavar="PROMPT", help=described["prompt"].help)
    group.add_argument("-p", "--prompt", dest="prompt_option", help=argparse.SUPPRESS)
    option(group, "-n", "--num-images", "--n", "--n-samples", "-b", "--batch-count", dest="n", type=reader("n", COUNT), default=1,
           metavar="N", help="how many images (default: 1)")  # fmt: skip
    add_fields(group, Request, ["seed", *of_image])
    option(group, "--size", type=size, metavar="WxH", help="in pixels (default: what the model was trained on)")
    option(group, "--best-of", type=reader("best_of", BEST_OF), default=1, metavar="N",
           help="draw N for each image and keep the one that shows the prompt best (default: 1)")  # fmt: skip
    option(group, "--judge", metavar="NAME",
           help="a CLIP model to choose by, a folder or a hub id (default: the embedded model's own judge)")  # fmt: skip
    option(group, "--from-image", metavar="PNG",
           help="draw again what this file says made it; the other options change it")  # fmt: skip

    group = parser.add_argument_group(FROM_IMAGE)
    add_fields(group, Request, [name for name in SETTINGS if described[name].group == FROM_IMAGE])

    group = parser.add_argument_group(SAMPLING)
    add_fields(group, Request, of_sampling)
    option(group, "--deterministic", action="store_true", help="bitwise the same whatever -n is; slower")

    add_fields(parser.add_argument_group("model"), ModelSpec, settings_of(ModelSpec))

    group = parser.add_argument_group("output")
    option(group, "-o", "--output", metavar="PATH",
           help=".png, .jpg or .webp, overwritten; {seed}, {index} or %%03d (from 0) name several "
                "(default: pirate-ship.png, then pirate-ship-2.png, ...)")  # fmt: skip
    option(group, "--outdir", metavar="DIR", help="where to save, made if missing (default: here)")
    option(group, "-q", "--quiet", action="store_true", help="no progress and no seed on stderr")


def _generate(args: argparse.Namespace) -> int:
    from genpipe.filenames import file_stem
    from genpipe.images import save_image, save_new
    from genpipe.seeds import random_seed, seeds_for

    settings, spec = _asked_for(args)
    if "prompt" not in settings:
        raise ValueError('nothing to draw: give a prompt, as in genpipe "pirate ship"')
    Request.check_settings(settings)
    drawn = "seed" not in settings
    seeds = seeds_for(settings.pop("seed", random_seed()), args.n)
    if args.best_of > 1:  # each image is chosen from so many seeds
        seeds = seeds_for(seeds[0], args.n * args.best_of)[:: args.best_of]
    prompt = settings.pop("prompt")
    paths = _output_paths(args.output, args.outdir, seeds)

    if spec.model is None:
        name_unknown_words(prompt)

    from genpipe.pipeline import BATCH, Pipeline

    pipeline = Pipeline.from_pretrained(spec)
    if drawn and not args.quiet:
        print(f"seed {seeds[0]}", file=sys.stderr)
    # Batch by batch, so that what is done is on the disk when something fails.
    size = max(1, BATCH // args.best_of)
    for start in range(0, args.n, size):
        batch = seeds[start : start + size]
        images = pipeline(
            [prompt],
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


def _asked_for(args: argparse.Namespace) -> tuple[dict[str, Any], ModelSpec]:
    """Give the settings and the model that the options ask for, over those of --from-image."""
    if args.prompt is not None and args.prompt_option is not None:
        raise ValueError("two prompts: give PROMPT or --prompt, not both")
    if args.size is not None and not args.height is args.width is None:
        raise ValueError("two sizes: give --size or --height and --width, not both")
    args.prompt = args.prompt_option if args.prompt is None else args.prompt
    args.width, args.height = args.size or (args.width, args.height)
    settings, model = given_fields(args, Request), given_fields(args, ModelSpec)
    if args.from_image is not None:
        from genpipe.metadata import read_made

        made = read_made(args.from_image)
        settings, model = {**made.request, **settings}, {**made.model, **model}
        if made.unread and not args.quiet:
            rest = listed(f"{key}: {value}" for key, value in made.unread.items())
            print(f"not taken from {args.from_image}: {one_line(rest)}", file=sys.stderr)
    return settings, ModelSpec.from_dict(model)


def _output_paths(output: str | None, outdir: str | None, seeds: Sequence[int]) -> list[Path] | None:
    """Where each image goes, None for names after the prompt; refused here if it cannot be written."""
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
            raise ValueError(f"--output {output} names one file for {len(seeds)} images: {fix}")
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
