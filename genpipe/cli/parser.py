"""The commands, and what is given to them: an unknown option names its nearest."""

import argparse
import difflib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import genpipe
from genpipe.cli.classify import classify_command
from genpipe.cli.convert import convert_command
from genpipe.cli.generate import generate_command
from genpipe.cli.info import info_command
from genpipe.cli.models import models_command
from genpipe.cli.render import render_command
from genpipe.cli.serve import serve_command
from genpipe.cli.show import show_command
from genpipe.cli.tokens import tokens_command
from genpipe.cli.train import train_command
from genpipe.cli.vision import vision_command
from genpipe.cli.vocabulary import vocabulary_command
from genpipe.messages import quoted

# A command is a function that adds its arguments and sets `run`; its docstring is its line in the help.
COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "generate": generate_command,
    "render": render_command,
    "serve": serve_command,
    "classify": classify_command,
    "train": train_command,
    "vision": vision_command,
    "show": show_command,
    "tokens": tokens_command,
    "info": info_command,
    "models": models_command,
    "convert": convert_command,
    "vocabulary": vocabulary_command,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the arguments of a command; the `run` of what is returned carries it out.

    Raises:
        ValueError: they cannot be understood.
        SystemExit: the help or the version was asked for and printed; or nothing was given, with status 2.
    """
    name = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = _Parser(
        prog=f"genpipe {name}" if name else "genpipe",
        description=_sentence(COMMANDS[name].__doc__) if name else None,
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
            "Draw the image that a prompt describes.\n\n"
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
            raise ValueError(
                f"unknown option {quoted(word)}: {f'did you mean {near[0]}?' if near else 'see genpipe --help'}"
            )
    if rest:
        raise ValueError(f'unexpected {quoted(rest[0])}: put the prompt in quotes, as in genpipe "pirate ship"')
    return args


def _sentence(line: str | None) -> str:
    return f"{(line or '')[:1].upper()}{(line or '')[1:]}."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Before Python 3.13 the value of `--model=--` is dropped, and an empty list given in its place.
        if action.nargs is None and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "expected one argument, not '--'")
        return super()._get_values(action, arg_strings)
