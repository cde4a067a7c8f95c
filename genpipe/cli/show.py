"""`genpipe show FILE`: what an image's file says of how it was made."""

import argparse
from typing import Any

from genpipe.messages import one_line

EXAMPLES = """\
examples:
  genpipe show pirate-ship.png
  genpipe show ComfyUI_00001_.png 00012-1234567.jpg
"""


def show_command(parser: argparse.ArgumentParser) -> None:
    """show what made an image, from a file of genpipe's, A1111's, ComfyUI's or InvokeAI's"""
    parser.usage = "%(prog)s FILE [FILE ...]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_show)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a PNG, JPEG or WebP file")


def _show(args: argparse.Namespace) -> int:
    from genpipe.metadata import what_it_says

    for number, name in enumerate(args.files):
        print("\n" if number else "", end="")
        for key, value in {"file": name, **what_it_says(name)}.items():
            _print_row(key, value)
    return 0


def _print_row(key: str, value: Any) -> None:
    """Print a name and a value, whose lines stand below each other."""
    for line_number, line in enumerate(str(value).splitlines() or [""]):
        print(f"{one_line(key, 60) if line_number == 0 else '':<18} {one_line(line, 10_000)}".rstrip())
