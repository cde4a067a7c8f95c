"""The one error that reading a checkpoint raises."""

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first few of them where there are many: "a, b and 510 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


class CheckpointError(ValueError):
    """A checkpoint is not there, not whole, or not one that genpipe can run; the message is one line."""
