"""`genpipe classify`: its arguments, and how results are printed."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from genpipe.cli.options import reader
from genpipe.cli.output import say
from genpipe.fields import Whole
from genpipe.messages import quoted

if TYPE_CHECKING:
    from genpipe.vision.classify import Prediction


def classify_command(parser: argparse.ArgumentParser) -> None:
    """say what images show"""
    parser.usage = "%(prog)s FILE... [options]"
    parser.set_defaults(run=_classify)
    group = parser.add_argument_group("images")
    group.add_argument("files", nargs="+", metavar="FILE", help="images, or folders of them")
    group.add_argument("--top", type=reader("top", Whole(1, 100_000, "5 is usual")), default=5, metavar="N",
                       help="labels per image (default: 5)")  # fmt: skip
    group.add_argument("--json", action="store_true", help="print one JSON array")
    group = parser.add_argument_group("model")
    group.add_argument("--weights", metavar="FILE",
                       help="a .safetensors file or its URL (default: the embedded scene classifier)")  # fmt: skip
    group.add_argument("-m", "--model", metavar="NAME",
                       help="resnet50, alexnet, ... where the weights do not say it")  # fmt: skip
    group.add_argument("--allow-pickle", action="store_true", help="read weights that are not safetensors (.pth)")
    group.add_argument("--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the best there is)")


def _classify(args: argparse.Namespace) -> int:
    if args.model is not None and args.weights is None:
        raise ValueError(
            f"no weights given for {quoted(args.model)}: pass --weights FILE, for example resnet50.safetensors"
        )
    if len(args.files) == 1:
        Path(args.files[0]).stat()  # raises before torch is loaded
    from genpipe.vision.classify import classify

    predictions = classify(
        # Given alone, an image that cannot be read is refused before the weights are.
        args.files if len(args.files) > 1 else args.files[0],
        model=args.model,
        weights=args.weights,
        top=args.top,
        device=args.device,
        allow_pickle=args.allow_pickle,
    )
    print(as_json(predictions) if args.json else as_text(predictions))
    unread = [prediction for prediction in predictions if prediction.error is not None]
    for prediction in unread:
        say("error", str(prediction.error))
    if unread:
        print(f"genpipe: {len(unread)} of {len(predictions)} images could not be read", file=sys.stderr)
    return 2 if unread else 0


def as_text(predictions: "list[Prediction]") -> str:
    """Write a line per image and, below it, a line per label; images that could not be read are left out."""
    lines: list[str] = []
    for prediction in predictions:
        if prediction.error is None:
            lines.append(prediction.source)
            lines += (f"  {label.probability:6.1%}  {label.name}" for label in prediction.labels)
    return "\n".join(lines)


def as_json(predictions: "list[Prediction]") -> str:
    """Write an array of {"source", "labels": [{"index", "name", "probability"}, …], "error"}."""
    from dataclasses import asdict

    return json.dumps([asdict(prediction) for prediction in predictions], ensure_ascii=False, indent=2)
