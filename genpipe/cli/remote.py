"""`genpipe PROMPT --server URL`: drawn by a server, saved here."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genpipe.cli.output import report
from genpipe.sizes import size_of_ratio
from genpipe.spec import ModelSpec

if TYPE_CHECKING:
    from genpipe.cli.saving import Output


def check_server(args: argparse.Namespace, spec: ModelSpec) -> None:
    """Raise ValueError if options ask for what only this machine can do."""
    here = {
        "--plot": args.plot,
        "--best-of": args.best_of > 1,
        "--judge": args.judge,
        "--preview": args.preview,
        "--deterministic": args.deterministic,
    }
    here |= {
        f"--{name.replace('_', '-')}": value != getattr(ModelSpec(), name)
        for name, value in spec.to_dict().items()
        if name != "model"
    }
    if given := [name for name, value in here.items() if value]:
        raise ValueError(f"--server draws elsewhere, where {', '.join(given)} cannot be chosen: leave one of them out")


def draw_remotely(
    args: argparse.Namespace,
    wanted: Sequence[tuple[str, int]],
    settings: dict[str, Any],
    model: str | None,
    output: "Output",
) -> None:
    """Draw an image of each prompt and seed on the server that --server names, and save them."""
    from genpipe.client import Client
    from genpipe.images import grid

    client = Client(args.server, model=model)
    if args.ar is not None:
        models = client.models()
        usual = next((one for one in models if one["name"] == model), models[0])["defaults"]
        xl = min(usual["width"], usual["height"]) >= 1024
        settings["width"], settings["height"] = size_of_ratio(args.ar, usual["width"], usual["height"], xl=xl)
    if not args.quiet:
        print(f"seed {wanted[0][1]}", file=sys.stderr)
    prompts, seeds = zip(*wanted, strict=True)
    images = client(list(prompts), seeds=seeds, progress=not args.quiet, **settings)
    for index, image in enumerate(images):
        for line in str(image.info.pop("warnings", "")).splitlines():
            print(f"genpipe: warning: {line}", file=sys.stderr)
        report(output.save(image, index))
    if args.grid:
        report(output.save_beside(grid(images), "grid"))
