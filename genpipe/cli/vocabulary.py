"""`genpipe vocabulary`: what the embedded model can draw, and which words of a prompt it does not know."""

import argparse
import warnings

from genpipe.embedded import learned_concepts
from genpipe.messages import listed, quoted


def vocabulary_command(parser: argparse.ArgumentParser) -> None:
    """list what the embedded model can draw"""
    parser.usage = "%(prog)s [WORD]"
    parser.set_defaults(run=_vocabulary)
    parser.add_argument("word", nargs="?", metavar="WORD", help="only what has this in one of its names")


def _vocabulary(args: argparse.Namespace) -> int:
    from genpipe.scenes.vocabulary import listing, near

    learned = learned_concepts()
    entries = listing(args.word, learned)
    if not entries:
        others = near(args.word, learned)
        hint = f"did you mean {' or '.join(others)}?" if others else "genpipe vocabulary lists what it does"
        raise ValueError(f"the embedded model does not know {quoted(args.word)}: {hint}")
    for name, others in entries.items():
        print(f"{name}: {', '.join(others)}" if others else name)
    return 0


def name_unknown_words(prompt: str) -> None:
    """Warn of the words of a prompt that the embedded model has not learned."""
    from genpipe.scenes.normalise import normalise
    from genpipe.scenes.vocabulary import unknown_words

    learned = learned_concepts()
    unknown = unknown_words(normalise(prompt, learned).text, learned)
    if unknown:
        named = [
            f"{quoted(word)} (did you mean {' or '.join(near)}?)" if near else quoted(word)
            for word, near in unknown.items()
        ]
        warnings.warn(
            f"the embedded model does not know {listed(named)}: it draws the rest; genpipe vocabulary lists what "
            "it knows, --model takes a full Stable Diffusion checkpoint",
            stacklevel=2,
        )
