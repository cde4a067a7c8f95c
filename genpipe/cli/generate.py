"""`genpipe PROMPT`: its arguments, its checks before a network is loaded, and where the images go."""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from genpipe.cli.options import add_fields, given_fields, option, ratio, reader, size
from genpipe.cli.output import report
from genpipe.cli.plot import axis, check_axes, draw_plot, write_json
from genpipe.cli.prompts import add_prompt_options, write_prompts
from genpipe.cli.remote import check_server, draw_remotely
from genpipe.cli.vocabulary import name_unknown_words
from genpipe.fields import settings_of
from genpipe.messages import listed, one_line
from genpipe.request import BEST_OF, COUNT, FROM_IMAGE, IMAGE, MAX_SEED, SAMPLING, SETTINGS, Request
from genpipe.sizes import size_of_ratio
from genpipe.spec import ModelSpec

if TYPE_CHECKING:
    from PIL import Image

    from genpipe.cli.saving import Output
    from genpipe.pipeline import Pipeline

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
    option(
        group, "--ar", "--aspect-ratio", type=ratio, metavar="W:H", help="16:9, 2:3, ...: a size that suits the model"
    )
    add_prompt_options(group)
    option(group, "--best-of", type=reader("best_of", BEST_OF), default=1, metavar="N",
           help="draw N for each image and keep the one that shows the prompt best (default: 1)")  # fmt: skip
    option(group, "--judge", metavar="NAME",
           help="a CLIP model to choose by, a folder or a hub id (default: the embedded model's own judge)")  # fmt: skip
    option(group, "--from-image", metavar="FILE",
           help="draw again what this file says made it, also one of A1111, ComfyUI or InvokeAI; the other options change it")  # fmt: skip

    group = parser.add_argument_group(FROM_IMAGE)
    add_fields(group, Request, [name for name in SETTINGS if described[name].group == FROM_IMAGE])

    group = parser.add_argument_group(SAMPLING)
    add_fields(group, Request, of_sampling)
    option(group, "--deterministic", action="store_true", help="bitwise the same whatever -n is; slower")

    group = parser.add_argument_group("model")
    add_fields(group, ModelSpec, settings_of(ModelSpec))
    option(group, "--server", metavar="URL",
           help="draw on a server (genpipe serve), whose models --model names; GENPIPE_API_KEY is its key")  # fmt: skip

    group = parser.add_argument_group("output")
    option(group, "-o", "--output", metavar="PATH",
           help=".png, .jpg or .webp, overwritten; {seed}, {index} or %%03d (from 0) name several "
                "(default: pirate-ship.png, then pirate-ship-2.png, ...)")  # fmt: skip
    option(group, "--outdir", metavar="DIR", help="where to save, made if missing (default: here)")
    option(group, "--grid", action="store_true", help="save the images side by side too")
    option(group, "--plot", nargs="+", type=axis, default=[], metavar="NAME=V,V",
           help="a labelled sheet over one or two settings instead, as in steps=10,20 sampler=ddim,euler_a")  # fmt: skip
    option(group, "--preview", metavar="PATH", help="keep a small image of the current step in this file")
    option(group, "--sign", metavar="PEM",
           help="sign the files (C2PA) with the certificates and the private key in this file")  # fmt: skip
    option(group, "-q", "--quiet", action="store_true", help="no progress and no seed on stderr")


def _generate(args: argparse.Namespace) -> int:
    from genpipe.cli.preview import Preview
    from genpipe.cli.saving import Output
    from genpipe.filenames import file_stem
    from genpipe.seeds import random_seed, seeds_for

    settings, spec = _asked_for(args)
    if "prompt" not in settings:
        raise ValueError('nothing to draw: give a prompt, as in genpipe "pirate ship"')
    Request.check_settings(settings)
    drawn = "seed" not in settings
    seeds = seeds_for(settings.pop("seed", random_seed()), args.n)
    if settings.get("vary"):
        if args.best_of > 1:
            raise ValueError("--best-of chooses between seeds, and --vary keeps to one: leave one out")
        seeds = seeds[:1] * args.n
    if args.best_of > 1:  # each image is chosen from so many seeds
        seeds = seeds_for(seeds[0], args.n * args.best_of)[:: args.best_of]
    stem = file_stem(settings["prompt"])
    wanted = write_prompts(args, settings, seeds)
    del settings["prompt"]
    if args.plot:
        sized = () if args.ar is None else ("height", "width")
        check_axes(args.plot, {*given_fields(args, Request), *sized})
        if len(wanted) > 1 or args.best_of > 1 or args.grid:
            raise ValueError("--plot draws its own images: leave -n, --matrix, --best-of and --grid out")
    sign = None
    if args.sign is not None:
        from genpipe.signing import Signer

        sign = Signer(args.sign)
    named = f"{stem}-plot" if args.plot else stem
    output = Output(args.output, args.outdir, named, [seed for _, seed in wanted], sign=sign)
    if args.server is not None:
        check_server(args, spec)
        draw_remotely(args, wanted, settings, spec.model, output)
        return 0
    preview = None if args.preview is None else Preview(args.preview)

    if spec.model is None:
        name_unknown_words(wanted[0][0])
        if settings.get("tile"):
            warnings.warn(
                "the embedded model places things by the edges of an image: with tile it draws patterns; --model takes a "
                "full Stable Diffusion checkpoint",
                stacklevel=2,
            )

    from genpipe.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(spec)
    if args.ar is not None:
        usual = pipeline.defaults()
        xl = pipeline.traits.sizes > 0 and min(usual["width"], usual["height"]) >= 1024
        settings["width"], settings["height"] = size_of_ratio(args.ar, usual["width"], usual["height"], xl=xl)
    if drawn and not args.quiet:
        print(f"seed {seeds[0]}", file=sys.stderr)
    settings |= {"deterministic": args.deterministic, "progress": not args.quiet, "callback": preview}
    if args.plot:
        prompt, seed = wanted[0]
        sheet, told = draw_plot(partial(pipeline, prompt), args.plot, {"seed": seed, **settings})
        path = output.save(sheet, 0)
        write_json(path.with_suffix(".json"), told)
        report(path)
    else:
        _draw(pipeline, wanted, output, args, settings)
    return 0


def _draw(
    pipeline: "Pipeline",
    wanted: Sequence[tuple[str, int]],
    output: "Output",
    args: argparse.Namespace,
    settings: dict[str, Any],
) -> None:
    """Draw and save an image of each prompt and seed; batch by batch, so that what is done is kept when something fails."""
    from genpipe.images import grid
    from genpipe.pipeline import BATCH

    size = max(1, BATCH // args.best_of)
    shown: list[Image.Image] = []
    for start, part, done in _parts(wanted, size, varied=bool(settings.get("vary"))):
        prompts, seeds = zip(*part, strict=True)
        own = settings
        if done:
            first = seeds[0] + 1 if settings.get("vary_seed") is None else settings["vary_seed"]
            own = {**settings, "vary_seed": (first + done) % (MAX_SEED + 1)}
        images = pipeline(list(prompts), seeds=seeds, best_of=args.best_of, judge=args.judge, **own)
        for index, image in enumerate(images, start):
            report(output.save(image, index))
        shown += images if args.grid else []
    if args.grid:
        report(output.save_beside(grid(shown), "grid"))


def _parts(
    wanted: Sequence[tuple[str, int]], size: int, *, varied: bool
) -> Iterator[tuple[int, Sequence[tuple[str, int]], int]]:
    """Yield what is drawn by one call: the number of its first image, prompts and seeds, and how many variations are done.

    The variations of a prompt and a seed, which differ in neither, are counted up through calls of their own.
    """
    start = 0
    while start < len(wanted):
        part = wanted[start : start + size]
        if varied:
            part = [one for one in part if one == part[0]]
        yield start, part, wanted[:start].count(part[0]) if varied else 0
        start += len(part)


def _asked_for(args: argparse.Namespace) -> tuple[dict[str, Any], ModelSpec]:
    """Give the settings and the model that the options ask for, over those of --from-image."""
    if args.prompt is not None and args.prompt_option is not None:
        raise ValueError("two prompts: give PROMPT or --prompt, not both")
    if args.size is not None and not args.height is args.width is None:
        raise ValueError("two sizes: give --size or --height and --width, not both")
    if args.ar is not None and (args.size, args.height, args.width) != (None, None, None):
        raise ValueError("two sizes: give --ar or --size, not both")
    args.prompt = args.prompt_option if args.prompt is None else args.prompt
    args.width, args.height = args.size or (args.width, args.height)
    settings, model = given_fields(args, Request), given_fields(args, ModelSpec)
    if args.from_image is not None:
        from genpipe.metadata import read_made

        made = read_made(args.from_image)
        settings, model = {**made.request, **settings}, {**made.model, **model}
        if made.program != "genpipe" and not args.quiet:
            taken = listed(made.request, len(made.request), 200) or "nothing"
            print(f"taken from {args.from_image} ({made.program}): {taken}", file=sys.stderr)
        if made.unread and not args.quiet:
            rest = listed(f"{key}: {value}" for key, value in made.unread.items())
            print(f"not taken from {args.from_image}: {one_line(rest)}", file=sys.stderr)
    return settings, ModelSpec.from_dict(model)
