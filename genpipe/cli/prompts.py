"""Options that make the prompts of images from what a person wrote: styles, wildcards, a matrix."""

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

from genpipe.cli.options import option
from genpipe.messages import listed
from genpipe.prompts.matrix import combinations
from genpipe.prompts.styles import apply_styles, presets, read_styles
from genpipe.prompts.wildcards import Wildcards, names_in


def add_prompt_options(group: Any) -> None:
    """Add the options to a command."""
    option(group, "--style", action="append", default=[], metavar="NAME",
           help="watercolour, comic, pixel art, ...: words around the prompt; may be given again")  # fmt: skip
    option(group, "--styles", metavar="CSV", help="a file like A1111's styles.csv, whose styles --style knows too")
    option(group, "--wildcards", metavar="DIR",
           help="__colour__ in the prompt is a line of DIR/colour.txt, chosen by the seed")  # fmt: skip
    option(group, "--matrix", action="store_true",
           help='"a city|at night|in the rain": one image without and with each of the parts')  # fmt: skip


def write_prompts(args: argparse.Namespace, settings: dict[str, Any], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Give the prompt and the seed of every image; what styles add to the negative prompt is put into `settings`.

    Args:
        args: with the options.
        settings: prompt and negative_prompt as a person gave them.
        seeds: of the images of one prompt; all prompts of a matrix have the same.

    Raises:
        ValueError: a style or a wildcard is unknown, or the prompt is none for a matrix.
        OSError: a file cannot be read.
    """
    prompt, negative = settings["prompt"], settings.get("negative_prompt", "")
    if args.style:
        known = {**presets(), **({} if args.styles is None else read_styles(args.styles))}
        prompt, negative = apply_styles(prompt, negative, args.style, known)
        settings["negative_prompt"] = negative
    elif args.styles is not None:
        raise ValueError(f"--styles {args.styles} has no effect: say which of them with --style NAME")
    texts = combinations(prompt) if args.matrix else [prompt]
    if args.wildcards is None:
        if named := names_in(prompt):
            warnings.warn(
                f"{listed(f'__{name}__' for name in named)} is drawn as text: give --wildcards DIR", stacklevel=2
            )
        return [(text, seed) for text in texts for seed in seeds]
    if names_in(negative):
        raise ValueError("wildcards are for the prompt: write words into the negative prompt")
    wildcards = Wildcards(args.wildcards)
    return [(wildcards.fill(text, seed), seed) for text in texts for seed in seeds]
