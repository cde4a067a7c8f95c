"""`genpipe render`: its arguments, its progress, its interruptions."""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from genpipe.cli.values import as_number, as_whole
from genpipe.messages import quoted

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
_OPTIONS = (
    *("model", "revision", "variant", "dtype", "n", "format", "deterministic", "best_of", "score"),
    *("strict", "verify", "force", "retry_failed"),
)


def render_command(parser: argparse.ArgumentParser) -> None:
    """draw a long list of prompts, on every device there is"""
    parser.usage = "%(prog)s FILE --out DIR [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_render)
    group = parser.add_argument_group("pictures")
    group.add_argument("source", metavar="FILE", help="prompts: .txt (one a line), .jsonl or .csv; - is standard input")
    group.add_argument("-n", type=as_whole, default=1, metavar="N", help="pictures a row (default: 1)")
    group.add_argument("--seeds", metavar="LIST",
                       help="draw every row with each of these, as in 0-63,70 (default: seeds made of the rows)")  # fmt: skip
    group.add_argument(
        "--best-of", type=as_whole, default=1, metavar="N", help="draw N for each, keep the best by the judge"
    )
    group.add_argument("--score", action="store_true", help="have the judge score every picture")

    group = parser.add_argument_group("settings of rows that do not say otherwise (default: what suits the model)")
    group.add_argument("-N", "--negative-prompt", metavar="TEXT", help="what to keep out of the pictures")
    group.add_argument("--size", metavar="WxH", help="in pixels")
    group.add_argument("--steps", type=as_whole, metavar="N", help="solver steps, 1 to 1000")
    group.add_argument("--guidance-scale", type=as_number, metavar="X", help="how closely to follow the prompt")
    group.add_argument("--guidance-rescale", type=as_number, metavar="X", help="0 to 1, against over-exposure")
    group.add_argument("--sampler", metavar="NAME", help="ddim, euler_a, dpmpp_2m_karras, ...")
    group.add_argument("--clip-skip", type=as_whole, metavar="N", help="last layers of the text encoder to leave out")

    group = parser.add_argument_group("model and devices")
    group.add_argument("-m", "--model", metavar="NAME", help="a folder in the diffusers layout or a hub id")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    group.add_argument("--variant", metavar="NAME", help="fp16 reads the files of that name")
    group.add_argument("--dtype", metavar="NAME", choices=("fp32", "bf16", "fp16"), help="fp32, bf16 or fp16")
    group.add_argument("--batch", type=_batch, metavar="N", help="pictures that are drawn together (default: auto)")
    group.add_argument("--devices", default="auto", metavar="LIST",
                       help="auto, cpu, cpu:4 (processes), cuda or cuda:0,cuda:1 (default: auto)")  # fmt: skip
    group.add_argument("--engine", default="local", metavar="NAME", help="local or ray (default: local)")
    group.add_argument("--address", metavar="ADDR", help="of the Ray cluster (default: one on this machine)")
    group.add_argument("--deterministic", action="store_true", help="bitwise the same pictures in any batch; slower")

    group = parser.add_argument_group("output")
    group.add_argument("-o", "--out", metavar="DIR", help="the folder, made if missing")
    group.add_argument("--storage", metavar="URL", help="where the pictures go instead, by fsspec, as in s3://bucket/x")
    group.add_argument("--format", default="png", metavar="NAME", help="png, jpg or webp (default: png)")
    group.add_argument("--dry-run", action="store_true", help="show what would be drawn and how long it would take")
    group.add_argument("--strict", action="store_true", help="stop at a row that cannot be drawn")
    group.add_argument("--verify", action="store_true", help="check the hashes of the pictures that are there")
    group.add_argument("--retry-failed", action="store_true", help="draw again what failed before")
    group.add_argument("--force", action="store_true", help="go on in a folder that was made with other settings")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")


def _render(args: argparse.Namespace) -> int:
    from genpipe.render.api import make_engine, make_options
    from genpipe.render.rows import parse_seeds
    from genpipe.render.run import Run

    if args.out is None and not args.dry_run:
        raise ValueError("no folder given: say where the pictures go with --out DIR")
    values: dict[str, Any] = {key: getattr(args, key) for key in _OPTIONS}
    values |= {"batch": args.batch, "seeds": None if args.seeds is None else parse_seeds(args.seeds)}
    values["width"], values["height"] = _size(args.size)
    for key in ("negative_prompt", "steps", "guidance_scale", "guidance_rescale", "sampler", "clip_skip"):
        values[key] = getattr(args, key)
    if args.model == "embedded":
        values["model"] = None
    engine = make_engine(args.engine, args.devices, args.address)
    if args.dry_run:
        from genpipe.render.estimate import estimate

        print(estimate(args.source, make_options(values), engine))
        return 0
    run = Run(args.source, args.out, make_options(values), engine=engine, storage=args.storage)
    started = time.perf_counter()
    with _interruptible(run):
        _show_progress(run, args.quiet)
    return _conclude(run, args, time.perf_counter() - started)


def _show_progress(run: "Run", quiet: bool) -> None:
    from tqdm import tqdm

    bar = None
    try:
        for picture in run.pictures():
            if bar is None:  # not before: loading and planning are no pictures
                done = run.total - run.left - 1
                bar = tqdm(
                    total=run.total, initial=done, unit="picture", disable=quiet, leave=False, dynamic_ncols=True
                )
            bar.update()
            if picture.error is not None:
                bar.write(f"genpipe: failed: line {picture.line}: {picture.error}", file=sys.stderr)
    finally:
        if bar is not None:
            bar.close()


def _conclude(run: "Run", args: argparse.Namespace, seconds: float) -> int:
    if run.rejected:
        print(f"genpipe: {run.rejected} rows cannot be drawn: see {args.out}/failures.jsonl", file=sys.stderr)
    if run.failed:
        print(f"genpipe: {run.failed} pictures failed: see {args.out}/failures.jsonl; "
              "--retry-failed draws them again", file=sys.stderr)  # fmt: skip
    if run.repeated:
        print(f"genpipe: {run.repeated} pictures are asked for twice, and are drawn once", file=sys.stderr)
    if run.stopped and run.left:
        print(f"genpipe: interrupted with {run.done} of {run.total} pictures done: "
              "the same command goes on", file=sys.stderr)  # fmt: skip
        return 130
    if not args.quiet:
        print(f"{run.report.pictures} pictures in {seconds:.0f} s, {run.done} of {run.total} in all", file=sys.stderr)
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


def _batch(text: str) -> int | str | None:
    return None if text == "auto" else as_whole(text)


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    width, cross, height = text.lower().replace("×", "x").partition("x")
    if not (cross and width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()):
        raise ValueError(f"{quoted(text)} is not a size: write it as WxH, for example 512x768")
    return int(width[:9]), int(height[:9])
