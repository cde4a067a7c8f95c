"""A folder in which samples run, and the rules that they are held to.

Everything runs in this process. An audit hook sees each file that is opened for writing, each program that is started and
each address that is connected to; stdout and stderr are caught; an alarm ends what hangs.
"""

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from genpipe.cli import main
from genpipe.cli.output import explain
from genpipe.messages import LINE, one_line

_ERROR = "genpipe: error: "
STATUSES = {0, 1, 2, 130}
# What Python and libraries say to programmers, and a person cannot use.
_BARE = re.compile(
    r"^(\[Errno|Expecting |Extra data|[\w.]+Error\b)|codec can't|enforce fail|invalid (int|float|literal)|^Truncated"
    r"|has no attribute|object is not|unsupported operand|'NoneType'|list index|index out of range|not enough values"
    r"|too many values|unexpected keyword|must be real number|argument of type|cannot unpack|division by zero"
    r"|embedded null|Exceeds the limit|not callable|takes \d+ positional|not subscriptable|unhashable|maximum recursion"
    r"|positional argument|object at 0x|set_int_max_str_digits|missing \d+ required"
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# Events whose first arguments are paths that something happens to.
_CHANGES = {
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
}
_CHANGES |= {"shutil.rmtree": 1, "shutil.move": 2, "os.chmod": 1, "os.utime": 1}
_STARTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
}


@dataclass(frozen=True)
class Sample:
    """One input: what it is, in words that find it again, and what runs it.

    Attributes:
        name: of the input.
        run: called in an empty folder; returns a command's exit status, or None where a function was called.
        images: whether the paths on stdout are images that have to be there.
        function: whether it is a call, which may raise, and not a command, which may not.
        outputs: where a person who types it says that it shall write.
    """

    name: str
    run: Callable[[], int | None]
    images: bool = False
    function: bool = False
    outputs: tuple[str, ...] = ()


class Hang(BaseException):
    """Raised by the alarm."""


class Sandbox:
    """The folder, and the judge of what samples do in it.

    Args:
        root: a folder that is there.
        patience: seconds after which a sample hangs.

    Attributes:
        root: all that a sample may write to; `work`, its working directory, is emptied before each.
        wrong: what the audit hook saw during the sample that runs.
    """

    def __init__(self, root: Path, patience: float = 20) -> None:
        self.root, self.work = root.resolve(), root.resolve() / "work"
        self.wrong: list[str] = []
        self._allowed: tuple[str, ...] = ()
        self._patience = patience
        self._watching = False
        sys.addaudithook(self._audit)

    def empty(self) -> Path:
        """Empty the working directory, change into it, and give a path in it for the files of the next sample."""
        os.chdir(self.root)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        os.chdir(self.work)
        return self.work / "in"

    def observe(self, sample: Sample) -> str | None:
        """Run a sample, and say what was wrong with it; None where nothing was."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace"), io.StringIO()
        self.wrong, status, raised = [], None, None
        outputs = [os.path.normpath(self.work / output) for output in sample.outputs]
        self._allowed = tuple(each.rstrip(os.sep) + os.sep for each in (str(self.root), *outputs))
        with self._watched(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = sample.run()
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 0
            except BaseException as error:  # noqa: BLE001 - whatever leaves the call is what is looked for
                raised = error
        if isinstance(raised, KeyboardInterrupt):
            raise raised
        out.flush()
        said = err.getvalue()
        if self.wrong:
            return self.wrong[0]
        if raised is not None:
            return self._of_an_exception(raised, wanted=sample.function)
        if status is not None and status not in STATUSES:
            return f"exit status {status}"
        return self._of_lines(said, status) or self._of_files(out.buffer.getvalue(), status, sample)  # pyright: ignore

    def _of_an_exception(self, error: BaseException, *, wanted: bool) -> str | None:
        """Functions may raise ValueError, OSError and RuntimeError with a line that helps; commands may raise nothing."""
        if isinstance(error, Hang):
            return f"hang of more than {self._patience:g} s at {_place(error)}"
        line = str(error)
        if wanted and isinstance(error, ValueError | OSError | RuntimeError | MemoryError):
            return _of_line(f"{_ERROR}{one_line(explain(error), 10**9)}")
        return f"{type(error).__name__} at {_place(error)}: {line[:250]!r}"

    def _of_lines(self, said: str, status: int | None) -> str | None:
        lines = [line for line in re.split(r"[\r\n]", said) if line.strip()]
        for line in lines:
            if wrong := _of_line(line):
                return wrong
        if status in (1, 2) and not lines:
            return f"exit status {status} without a line"
        return None

    def _of_files(self, out: bytes, status: int | None, sample: Sample) -> str | None:
        left = [path.name for path in self.work.rglob(".genpipe-*.part")]
        if left:
            return f"a half-written file is left: {left[0]}"
        paths = [Path(os.fsdecode(line)) for line in out.split(b"\n") if line] if sample.images else []
        if sample.images and status == 0 and not paths:
            return "exit status 0 without an image"
        for path in paths:
            try:
                with Image.open(self.work / path, formats=["PNG", "JPEG", "WEBP"]) as image:
                    image.load()
            except (OSError, ValueError) as error:
                return f"an image is lost: {error}"
        return None

    @contextmanager
    def _watched(self) -> Iterator[None]:
        def end(*_: Any) -> None:
            raise Hang

        before = signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, self._patience)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, mode, flags = arguments
            if (isinstance(flags, int) and flags & _WRITES) or (isinstance(mode, str) and set(mode) & set("wax+")):
                self._check(event, path)
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                self._check(event, path)
        elif event in _STARTS:
            if "genpipe.workers.process" not in str(arguments):
                self.wrong.append(f"a program is started: {event} {str(arguments)[:100]}")
        elif (
            event == "socket.connect"
            and isinstance(arguments[1], tuple)
            and arguments[1][0] not in ("127.0.0.1", "::1")
        ):
            self.wrong.append(f"{arguments[1][0]} is connected to")

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        # Not `realpath`, which would open folders itself.
        full = os.path.normpath(os.path.join(self.work, os.fsdecode(path)))
        device = full.startswith("/dev/") and not full.startswith("/dev/shm/")  # where files in memory lie
        if not device and not f"{full}{os.sep}".startswith(self._allowed):
            self.wrong.append(f"{event} outside: {full[:100]}")


def _of_line(line: str) -> str | None:
    if len(line) > LINE:
        return f"a line of {len(line) // 1000 or 0.4} thousand characters: {line[:60]!r}"
    if not line.isprintable():
        return f"a line with control characters: {line[:60]!r}"
    said = line.removeprefix(_ERROR)
    if said != line and (len(said) < 12 or _BARE.search(said)):
        return f"a line that does not help: {line[:250]!r}"
    return None


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "genpipe" in Path(frame.filename).parts]
    frame = frames[-1] if frames else None
    return f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}" if frame else "?"


def command(name: str, arguments: list[str], *, images: bool = False) -> Sample:
    """Make a sample of a command line."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    outputs = tuple(word for option, word in pairwise(words) if option.startswith("--out") and "\0" not in word)
    return Sample(name, lambda: main(arguments), images, outputs=outputs)


def function(name: str, action: Callable[[], Any]) -> Sample:
    """Make a sample of a call, which may raise what its documentation says."""

    def call() -> None:
        action()

    return Sample(name, call, function=True)
