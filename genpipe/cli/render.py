"""`genpipe render`: its arguments, its progress, its interruptions."""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from genpipe.cli.options import add_fields, given_fields, option, reader, size
from genpipe.fields import settings_of
from genpipe.request import BEST_OF, COUNT, SETTINGS, Request
from genpipe.spec import ModelSpec

if TYPE_CHECKING:
    from genpipe.render.run import Run

EXAMPLES = """\
examples:
  genpipe render prompts.txt --out renders
  genpipe render prompts.jsonl --out renders --steps 20 -n 4      # again, and it goes on where it ended
  genpipe render prompts.csv --out renders --seeds 0-63,70 --dry-run

A row is a prompt, or gives prompt, negative_prompt, seed, n, steps, guidance_scale, sampler, width, height, file_name
and whatever else is to be carried through to metadata.jsonl.
"""
_MODEL = [name for name in settings_of(ModelSpec) if name != "device"]
_OWN = (
    "n",
    "batch",
    "format",
    "deterministic",
    "best_of",
    "score",
    "judge",
    "sign",
    "strict",
    "verify",
    "force",
    "retry_failed",
)


def render_command(parser: argparse.ArgumentParser) -> None:
    """draw a long list of prompts, on every device there is"""
    parser.usage = "%(prog)s FILE --out DIR [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_render)
    group = parser.add_argument_group("images")
    group.add_argument("source", metavar="FILE",
                       help="prompts: .txt (one per line), .jsonl or .csv; - is standard input")  # fmt: skip
    option(group, "-n", "--num-images", dest="n", type=reader("n", COUNT), default=1, metavar="N",
           help="images per row (default: 1)")  # fmt: skip
    option(group, "--seeds", metavar="LIST",
           help="draw every row with each of these, as in 0-63,70 (default: seeds made of the rows)")  # fmt: skip
    option(group, "--best-of", type=reader("best_of", BEST_OF), default=1, metavar="N",
           help="draw N for each image and keep the one that shows the prompt best (default: 1)")  # fmt: skip
    option(group, "--score", action="store_true", help="have the judge score every image")
    option(group, "--judge", metavar="NAME",
           help="a CLIP model to judge by, a folder or a hub id (default: the embedded model's own judge)")  # fmt: skip

    group = parser.add_argument_group("settings of rows that do not say otherwise (default: what suits the model)")
    add_fields(group, Request, SETTINGS)
    option(group, "--size", type=size, metavar="WxH", help="in pixels")

    group = parser.add_argument_group("model and devices")
    add_fields(group, ModelSpec, _MODEL)
    option(group, "--batch", type=_batch, metavar="N", help="images that are drawn together (default: auto)")
    option(group, "--devices", default="auto", metavar="LIST",
           help="auto, cpu, cpu:4 (processes), cuda, cuda:0,cuda:1 or names of nvidia-smi -L (default: auto)")  # fmt: skip
    option(group, "--engine", default="local", choices=("local", "ray"), metavar="NAME",
           help="local or ray (default: local)")  # fmt: skip
    option(group, "--address", metavar="ADDR", help="of the Ray cluster (default: one on this machine)")
    option(group, "--deterministic", action="store_true", help="bitwise the same images in any batch; slower")

    group = parser.add_argument_group("output")
    option(group, "-o", "--out", metavar="DIR", help="the folder, made if missing")
    option(group, "--storage", metavar="URL", help="where the images go instead, by fsspec, as in s3://bucket/x")
    option(group, "--format", default="png", metavar="NAME", help="png, jpg or webp (default: png)")
    option(group, "--sign", metavar="PEM",
           help="sign the files (C2PA) with the certificates and the private key in this file, which workers read too")  # fmt: skip
    option(group, "--dry-run", action="store_true", help="show what would be drawn and how long it would take")
    option(group, "--strict", action="store_true", help="stop at a row that cannot be drawn")
    option(group, "--verify", action="store_true", help="check the hashes of the images that are there")
    option(group, "--retry-failed", action="store_true", help="draw again what failed before")
    option(group, "--force", action="store_true", help="go on in a folder that was made with other settings")
    option(group, "-q", "--quiet", action="store_true", help="no progress on stderr")


def _render(args: argparse.Namespace) -> int:
    from genpipe.render.api import make_engine
    from genpipe.render.options import Options
    from genpipe.render.rows import parse_seeds
    from genpipe.render.run import Run

    if args.out is None and not args.dry_run:
        raise ValueError("no folder given: say where the images go with --out DIR")
    if args.size is not None and not args.height is args.width is None:
        raise ValueError("two sizes: give --size or --height and --width, not both")
    args.width, args.height = args.size or (args.width, args.height)
    options = Options.of(
        **{name: getattr(args, name) for name in _OWN},
        **given_fields(args, Request),
        **given_fields(args, ModelSpec),
        seeds=None if args.seeds is None else parse_seeds(args.seeds),
    )
    engine = make_engine(args.engine, args.devices, args.address)
    if args.dry_run:
        from genpipe.render.estimate import estimate

        print(estimate(args.source, options, engine))
        return 0
    run = Run(args.source, args.out, options, engine=engine, storage=args.storage)
    started = time.perf_counter()
    with _interruptible(run):
        _show_progress(run, args.quiet)
    return _conclude(run, args, time.perf_counter() - started)


def _show_progress(run: "Run", quiet: bool) -> None:
    from genpipe.progress import Progress

    shown, told = None, 0
    try:
        for image in run.pictures():
            if shown is None:  # not before: loading and planning draw no images
                shown = Progress(run.total, unit="image", initial=run.total - run.left - 1, quiet=quiet)
            for line in run.report.batch_sizes[told:]:
                told += 1
                if not quiet:
                    shown.write(f"genpipe: {line}")
            shown.update()
            if image.error is not None:
                shown.write(f"genpipe: failed: line {image.line}: {image.error}")
    finally:
        if shown is not None:
            shown.close()


def _conclude(run: "Run", args: argparse.Namespace, seconds: float) -> int:
    if run.rejected:
        print(f"genpipe: {run.rejected} rows cannot be drawn: see {args.out}/failures.jsonl", file=sys.stderr)
    if run.failed:
        print(f"genpipe: {run.failed} images failed: see {args.out}/failures.jsonl; "
              "--retry-failed draws them again", file=sys.stderr)  # fmt: skip
    if run.repeated:
        print(f"genpipe: {run.repeated} images are asked for twice, and drawn once", file=sys.stderr)
    if run.stopped and run.left:
        print(f"genpipe: interrupted with {run.done} of {run.total} images done: "
              "the same command goes on", file=sys.stderr)  # fmt: skip
        return 130
    if not args.quiet:
        report = run.report
        print(f"{report.pictures} images in {seconds:.0f} s, {run.done} of {run.total} in all; the device had work for "
              f"{report.utilisation:.0%} of the drawing", file=sys.stderr)  # fmt: skip
    print(run.folder.root / "index.html")
    return 1 if run.failed or run.rejected else 0


@contextmanager
def _interruptible(run: "Run") -> Iterator[None]:
    """The first Ctrl-C lets the batches in flight finish, the second does not."""

    def interrupt(*_: Any) -> None:
        if run.stopped:
            raise KeyboardInterrupt
        run.stop()
        print("\ngenpipe: finishing what is being drawn; Ctrl-C again stops at once", file=sys.stderr)

    try:
        before = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread: whoever calls from there handles it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    from genpipe.render.options import BATCH

    return reader("batch", BATCH)(text)
