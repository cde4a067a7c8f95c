"""The `genpipe` command: parsing and printing only.

stdout holds the paths of what was saved and nothing else; all else goes to stderr. Exit status: 0 done; 1 the machine
failed (disk, memory, network); 2 the command asks for what cannot be; 130 interrupted, by Ctrl-C or SIGTERM. torch is
imported only once everything that can be checked without it has been.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own, and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    try:
        with _signals(interrupt), warnings.catch_warnings():
            return _run(arguments)
    except BaseException as error:
        # A library whose import is interrupted may raise an error of its own.
        if not interrupted and not isinstance(error, KeyboardInterrupt):
            raise
        print("\ngenpipe: interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    from genpipe.cli.output import complain, flush, logged_lines, show_warning

    warnings.showwarning = show_warning
    warnings.simplefilter("ignore", FutureWarning)  # what libraries will drop one day is for those who call them
    if any(action == "error" for action, *_ in warnings.filters):
        # `python -W error` is for finding faults in code: here a warning is a message to whoever draws.
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
    try:
        try:
            from genpipe.cli.parser import parse

            args = parse(arguments)
            with logged_lines(getattr(args, "quiet", False)):
                return args.run(args)
        finally:
            # Here and not at exit, where Python itself would complain of a reader that has gone or of a full disk.
            flush()
    except BrokenPipeError:
        return 1
    except ValueError as error:
        complain(error)
        return 2
    except (OSError, RuntimeError, MemoryError, ImportError) as error:
        complain(error)
        return 1


def _open_streams() -> None:
    """Put the null device where the shell has closed a standard stream, so that no file of ours takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    # What the terminal cannot show is escaped, as on stderr.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


@contextmanager
def _signals(interrupt: Callable[..., None]) -> Iterator[None]:
    """Have Ctrl-C call `interrupt`, and SIGTERM whatever Ctrl-C calls at that time; a caller's own handlers are kept."""

    def terminate(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            return handler(number, frame)
        raise KeyboardInterrupt

    usual = {signal.SIGINT: (signal.default_int_handler, interrupt), signal.SIGTERM: (signal.SIG_DFL, terminate)}
    replaced = {}
    try:
        for number, (default, handler) in usual.items():
            if signal.getsignal(number) is default:
                replaced[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread, where signals arrive
        pass
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
