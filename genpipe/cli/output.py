"""What is said: paths on stdout, all else on stderr."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any


def report(path: Path) -> None:
    """Print a path as the bytes that it is on the disk."""
    # The pictures still to come matter more than a reader that has gone.
    with contextlib.suppress(BrokenPipeError):
        flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        flush()


def flush() -> None:
    """Hand over what stdout holds back.

    Raises:
        OSError: it cannot be; it is dropped, so that the interpreter does not try again at its end.
    """
    try:
        sys.stdout.flush()
    except OSError:
        # What could not be written stays in the buffer: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def complain(error: Exception) -> None:
    """Print an error in one line."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    print("genpipe: error:", " ".join(text.split()) or "out of memory", file=sys.stderr)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line; takes what `warnings.showwarning` does."""
    print("genpipe: warning:", " ".join(str(message).split()), file=sys.stderr)
