"""Progress of long work: a bar on a terminal, and now and then a plain line in files and CI logs."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TextIO

# Seconds, and share of the whole, that pass at least between two plain lines.
SECONDS, SHARE = 10.0, 0.05


class Progress:
    """Shows how far work has come, on a stream that is a terminal or not.

    On a terminal it is a bar, which goes away when it is closed. Elsewhere it is a line such as
    "genpipe: 120 of 300 images, 40 %, 0.8 images/s, about 4 min left" whenever ten seconds have passed and 5 % more are done
    (every ten seconds where the whole is unknown), so that a log of any length stays short.

        with Progress(total=300, unit="image") as progress:
            for image in images:
                progress.update()

    Args:
        total: how many units there are; None where that is not known. May be set later.
        unit: what is counted, in the singular.
        initial: units that were done before.
        label: what the line begins with.
        quiet: show nothing, except what is given to `write`.
        stream: where to; None is stderr.
        clock: gives seconds.
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        unit: str = "step",
        initial: int = 0,
        label: str = "genpipe",
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done = total, initial
        self._unit, self._label, self._clock = unit, label, clock
        self._stream: TextIO | None = sys.stderr if stream is None else stream
        self._quiet = quiet or self._stream is None
        self._note = ""
        self._began = self._last = clock()
        self._initial, self._shown = initial, self._share(None) or 0.0
        self._bar: Any = None
        if not self._quiet and _is_terminal(self._stream):
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=initial,
                unit=unit,
                desc=None if label == "genpipe" else label,
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
            )

    def update(self, count: int = 1, *, share: float | None = None, note: str = "") -> None:
        """Count units that were done.

        Args:
            count: how many.
            share: of the whole that is done now, 0 … 1, where `total` cannot tell.
            note: what else to say, such as "loss 0.1234".
        """
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.total = self.total
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif not self._quiet:
            now, share = self._clock(), self._share(share)
            due = share is None or share - self._shown >= SHARE - 1e-9
            if now - self._last >= SECONDS and due:
                self._print(self._line(now, share))
                self._last, self._shown = now, share or 0.0

    def write(self, line: str) -> None:
        """Print a line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            self._print(line)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _share(self, given: float | None) -> float | None:
        return self.done / self.total if given is None and self.total else given

    def _line(self, now: float, share: float | None) -> str:
        many, count, seconds = f"{self._unit}s", self.done - self._initial, now - self._began
        parts = [f"{self.done:,} {many}" if self.total is None else f"{self.done:,} of {self.total:,} {many}"]
        if share is not None:
            parts.append(f"{share:.0%}".replace("%", " %"))
        if count > 0:
            slow = seconds > count
            parts.append(f"{seconds / count:.1f} s per {self._unit}" if slow else f"{count / seconds:.1f} {many}/s")
        began = self._initial / self.total if self.total else 0.0
        if share is not None and began < share < 1:
            parts.append(f"about {_duration((1 - share) * seconds / (share - began))} left")
        return f"{self._label}: {', '.join([*parts, *([self._note] if self._note else [])])}"

    def _print(self, line: str) -> None:
        if self._stream is None:
            return
        # The work matters more than a reader of its progress that has gone.
        with suppress(OSError, ValueError):
            print(line, file=self._stream, flush=True)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # not a file, or a closed one
        return False


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
