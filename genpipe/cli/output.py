"""What the command says: paths on stdout, all else on stderr, an error in one line."""

import contextlib
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genpipe.messages import LINE, one_line, quoted

# What libraries say of memory that they did not get; the number is the bytes that were asked for.
_NO_MEMORY = re.compile(
    r"alloc_cpu|DefaultCPUAllocator|out of memory|can(?:no|')t allocate memory|Unable to allocate|bad_alloc",
    re.IGNORECASE,
)
_BYTES = re.compile(r"allocate (?:memory: )?(?:you tried to allocate )?([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
# What to do about an error of the system, by its number.
_FIXES = {
    errno.EACCES: "give yourself the right to it, or choose another place",
    errno.EDQUOT: "free some of your quota, or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EROFS: "choose another place",
}


def report(path: Path) -> None:
    """Print a path on stdout as the bytes that it is on the disk."""
    # The images still to come matter more than a reader that has gone.
    with contextlib.suppress(BrokenPipeError):
        flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        flush()


def flush() -> None:
    """Write what stdout holds back.

    Raises:
        OSError: it cannot be written; it is dropped, so that the interpreter does not try again when it ends.
    """
    try:
        sys.stdout.flush()
    except OSError:
        # What could not be written stays in the buffer: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def complain(error: BaseException) -> None:
    """Print an error on stderr in one line."""
    say("error", explain(error))


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning on stderr in one line; takes the arguments of `warnings.showwarning`."""
    say("warning", str(message))


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say("warning", record.getMessage())


@contextlib.contextmanager
def logged_lines(quiet: bool) -> Iterator[None]:
    """Print on stderr what genpipe logs meanwhile, a line each; `quiet` keeps it, and what the hub's library says, back."""
    handler, logger = _Lines(logging.CRITICAL if quiet else logging.WARNING), logging.getLogger("genpipe")
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def say(kind: str, text: str) -> None:
    """Print `genpipe: kind: text` on stderr, in one line of at most `LINE` characters; a closed stderr is no error."""
    start = f"genpipe: {kind}: "
    with contextlib.suppress(OSError, ValueError):
        print(start + one_line(text, LINE - len(start)), file=sys.stderr)


def explain(error: BaseException) -> str:
    """Say what went wrong in words that help: the value, and what to do, where a library's own message lacks them."""
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return _no_memory(text)
    if isinstance(error, OSError) and error.strerror:
        return _of_the_system(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return (
            f"the Python package {package!r} is missing: install genpipe again (pip install --force-reinstall genpipe)"
        )
    if isinstance(error, ImportError):
        return f"a Python package does not fit: {text}; install it again, or a newer one"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{quoted(error.object[error.start : error.end])} cannot be written as {error.encoding}: "
            "use a UTF-8 locale (LANG=C.UTF-8), or set PYTHONUTF8=1"
        )
    if isinstance(error, UnicodeDecodeError):
        return f"the bytes {quoted(error.object[error.start : error.end])} are not {error.encoding}: save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"{quoted(error.doc)} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, RecursionError):
        return "what was read is nested too deeply: give a flatter file"
    return text or f"{type(error).__name__} without a word: please report how it came about"


def _no_memory(text: str) -> str:
    found, asked = _BYTES.search(text), ""
    if found:
        size = f"{int(found[1]) / 2**30:.1f} GiB" if found[2] == "bytes" else f"{found[1]} {found[2]}"
        asked = f" ({size} were asked for)"
    return f"out of memory{asked}: ask for a smaller size or for fewer images at once, or use --low-memory"


def _of_the_system(error: OSError) -> str:
    """The name that the system was asked for, its answer, and where a relative name was looked for."""
    name = error.filename if error.filename is not None else ""
    name = os.fsdecode(name) if isinstance(name, bytes | str | os.PathLike) else str(name)
    name = name if len(name) <= 200 else quoted(name)
    here = _working_directory()
    text = f"{name}: {error.strerror}" if name else str(error.strerror)
    if error.errno == errno.ENOENT and here is None:
        return f"{text}: the working directory is gone, change to one that is there"
    if error.errno == errno.ENOENT and name and not os.path.isabs(name):
        return f"{text} (in {here})"
    return f"{text}; {_FIXES[error.errno]}" if error.errno in _FIXES else text


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
