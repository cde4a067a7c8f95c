"""The `genpipe` command: parsing and printing only.

stdout holds the paths of what was saved and nothing else; all else goes to stderr. Exit status: 0 done; 1 the machine
failed (disk, memory, network); 2 the command asks for what cannot be; 130 interrupted. torch is imported only once
everything that can be checked without it has been.
"""

import argparse
import contextlib
import difflib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import genpipe
from genpipe.render.command import render_command
from genpipe.sampling.speed import SPEEDS
from genpipe.training.command import train_command
from genpipe.vision.command import classify_command, inspect_command

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own, and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What the shell closed (`>&-`) Python leaves as None.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            try:
                args = _parse(arguments)
                return args.run(args)
            finally:
                # Here and not at exit, where Python itself would complain of a reader that has gone or of a full disk.
                _flush()
        except KeyboardInterrupt:
            print("\ngenpipe: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 1
        except ValueError as error:
            _complain(error)
            return 2
        except (OSError, RuntimeError, MemoryError) as error:
            _complain(error)
            return 1


def generate_command(parser: argparse.ArgumentParser) -> None:
    """draw pictures from a prompt"""
    parser.usage = "%(prog)s PROMPT [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_generate)
    group = parser.add_argument_group("picture")
    group.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to draw, in quotes")
    group.add_argument("-p", "--prompt", dest="prompt_option", help=argparse.SUPPRESS)
    _option(group, "-N", "--negative-prompt", "--neg", metavar="TEXT", help="what to keep out of it")
    _option(group, "-n", "--num-images", "--n", "--n-samples", "-b", "--batch-count", dest="n", type=int, default=1,
            metavar="N", help="how many pictures (default: 1)")  # fmt: skip
    _option(group, "--best-of", type=int, default=1, metavar="N",
            help="draw N for each picture and keep the one that shows the prompt best (default: 1)")  # fmt: skip
    _option(group, "--judge", metavar="NAME",
            help="a CLIP model to choose by, a folder or a hub id (default: the embedded model's own judge)")  # fmt: skip
    _option(group, "-s", "--seed", type=int, metavar="N",
            help="0 to 2^64-1: the same seed draws the same picture; picture k takes N + k (default: drawn and shown)")  # fmt: skip
    _option(group, "--size", type=_size, metavar="WxH", help="in pixels (default: what the model was trained on)")
    _option(group, "-H", "--height", "--H", type=int, metavar="PX", help="the height alone")
    _option(group, "-W", "--width", "--W", type=int, metavar="PX", help="the width alone")
    _option(group, "--from-image", metavar="PNG",
            help="draw again what this file says made it; the other options change it")  # fmt: skip

    group = parser.add_argument_group("sampling (default: what suits the model)")
    _option(group, "--steps", "--ddim-steps", type=int, metavar="N", help="solver steps, 1 to 1000")
    _option(group, "--guidance-scale", "--scale", "--cfg-scale", type=float, metavar="X",
            help="how closely to follow the prompt; 1 turns guidance off")  # fmt: skip
    _option(group, "--guidance-rescale", type=float, metavar="X", help="0 to 1, against over-exposure at high scales")
    _option(group, "--sampler", "--sampling-method", metavar="NAME",
            help="ddim, euler_a, dpmpp_2m_karras, ...; the names of diffusers and A1111 work too")  # fmt: skip
    _option(group, "--clip-skip", type=int, metavar="N", help="last layers of the text encoder to leave out")
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

    group = parser.add_argument_group("output")
    _option(group, "-o", "--output", metavar="PATH",
            help=".png, .jpg or .webp, overwritten; {seed}, {index} or %%03d (from 0) name several "
                 "(default: pirate-ship.png, then pirate-ship-2.png, ...)")  # fmt: skip
    _option(group, "--outdir", metavar="DIR", help="where to save, made if missing (default: here)")
    _option(group, "-q", "--quiet", action="store_true", help="no progress and no seed on stderr")


def info_command(parser: argparse.ArgumentParser) -> None:
    """show the device, the model cache and the versions in use"""
    parser.usage = "%(prog)s"
    parser.set_defaults(run=_info)


def vocabulary_command(parser: argparse.ArgumentParser) -> None:
    """list what the embedded model can draw"""
    parser.usage = "%(prog)s [WORD]"
    parser.set_defaults(run=_vocabulary)
    parser.add_argument("word", nargs="?", metavar="WORD", help="only what has this in one of its names")


def vision_command(parser: argparse.ArgumentParser) -> None:
    """train a classifier on your own pictures, or look inside one"""
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


# A command is a function that adds its arguments and sets `run`; its docstring is its line in the help.
COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "generate": generate_command,
    "render": render_command,
    "classify": classify_command,
    "vision": vision_command,
    "info": info_command,
    "vocabulary": vocabulary_command,
}


def _parse(arguments: list[str]) -> argparse.Namespace:
    name = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = _Parser(
        prog=f"genpipe {name}" if name else "genpipe",
        description=f"{COMMANDS[name].__doc__}.".capitalize() if name else None,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
        allow_abbrev=False,
        add_help=False,
    )
    COMMANDS[name or "generate"](parser)
    group = parser.add_argument_group("help")
    group.add_argument("-h", "--help", action="help", help="show this and leave")
    if name is None:
        listed = "\n".join(f"  {key:<10} {function.__doc__}" for key, function in COMMANDS.items())
        parser.usage = "genpipe PROMPT [options]\n       genpipe COMMAND [options]"
        parser.description = (
            "Draw the picture that a prompt describes.\n\n"
            f"commands:\n{listed}\n"
            "Without one it is generate. To draw a command's name: genpipe generate info"
        )
        version = f"genpipe {genpipe.__version__}"
        group.add_argument("--version", action="version", version=version, help="show it and leave")
    if not arguments:
        parser.print_help(sys.stderr)
        sys.exit(2)
    args, rest = parser.parse_known_args(arguments if name is None else arguments[1:])
    for word in rest:
        if word.startswith("-"):
            known = [spelling for action in parser._actions for spelling in action.option_strings]
            near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            raise ValueError(f"unknown option {word}: {f'did you mean {near[0]}?' if near else 'see genpipe --help'}")
    if rest:
        raise ValueError(f'unexpected {rest[0]!r}: put the prompt in quotes, as in genpipe "pirate ship"')
    return args


def _generate(args: argparse.Namespace) -> int:
    from genpipe.images import NOT_REQUESTED, read_metadata, save_image, save_new
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
        _name_unknown_words(prompt)

    from genpipe.pipeline import BATCH, Pipeline

    pipeline = Pipeline.from_pretrained(
        None if model == "embedded" else model,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        variant=args.variant,
        tiny_vae=args.tiny_vae,
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
            _report(paths[index] if paths else save_new(image, args.outdir or ".", prompt))
    return 0


def _info(args: argparse.Namespace) -> int:
    from importlib.metadata import PackageNotFoundError, version

    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from genpipe.hardware import choose_device, choose_dtype

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    device = choose_device()
    card = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    files = [entry for entry in Path(HF_HUB_CACHE).rglob("*") if entry.is_file() and not entry.is_symlink()]
    rows = {
        "genpipe": genpipe.__version__,
        "device": f"{device}{card}",
        "dtype": str(choose_dtype(None, device)).removeprefix("torch."),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "model cache": f"{HF_HUB_CACHE} ({sum(file.stat().st_size for file in files) / 1e6:,.0f} MB)",
        "python": sys.version.split()[0],
        **{package: version_of(package) for package in ("torch", "diffusers", "transformers", "pillow")},
    }
    for key, value in rows.items():
        print(f"{key:<13}{value}")
    return 0


def _vocabulary(args: argparse.Namespace) -> int:
    from genpipe.scenes.vocabulary import listing, near

    learned = _learned()
    entries = listing(args.word, learned)
    if not entries:
        others = near(args.word, learned)
        hint = f"did you mean {' or '.join(others)}?" if others else "genpipe vocabulary lists what it does"
        raise ValueError(f"the embedded model does not know {args.word!r}: {hint}")
    for name, others in entries.items():
        print(f"{name}: {', '.join(others)}" if others else name)
    return 0


def _learned() -> tuple[str, ...]:
    """The concepts that the embedded model was trained on."""
    return tuple(json.loads((files("genpipe") / "embedded" / "genpipe.json").read_text(encoding="utf-8"))["concepts"])


def _name_unknown_words(prompt: str) -> None:
    from genpipe.scenes.vocabulary import unknown_words

    unknown = unknown_words(prompt, _learned())
    if unknown:
        named = ", ".join(
            f"{word} (did you mean {' or '.join(near)}?)" if near else word for word, near in unknown.items()
        )
        warnings.warn(
            f"the embedded model does not know {named}: it draws the rest; genpipe vocabulary lists what it knows, "
            "--model takes a full Stable Diffusion checkpoint",
            stacklevel=2,
        )


def _output_paths(output: str | None, outdir: str | None, seeds: Sequence[int]) -> list[Path] | None:
    """Where each picture goes, None for names after the prompt; refused here if it cannot be written."""
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write it as WxH, for example 512x768")
    return int(match[1]), int(match[2])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _option(group: Any, *names: str, **kwargs: Any) -> None:
    """Add an option. Its names up to the first long one are in the help; the others, and a_b for a-b, work unseen."""
    shown = next(index for index, name in enumerate(names) if name.startswith("--") and len(name) > 3) + 1
    action = group.add_argument(*names[:shown], **kwargs)
    # The same spelling with underscores is what CompVis and diffusers use.
    hidden = [*names[shown:], *(name.replace("-", "_").replace("__", "--", 1) for name in names if "-" in name[2:])]
    kwargs |= {"dest": action.dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    if hidden:
        group.add_argument(*hidden, **kwargs)


def _report(path: Path) -> None:
    """Print a path as the bytes that it is on the disk."""
    # The pictures still to come matter more than a reader that has gone.
    with contextlib.suppress(BrokenPipeError):
        _flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        _flush()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        # What could not be written stays in the buffer: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _complain(error: Exception) -> None:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    print("genpipe: error:", " ".join(text.split()) or "out of memory", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("genpipe: warning:", " ".join(str(message).split()), file=sys.stderr)
