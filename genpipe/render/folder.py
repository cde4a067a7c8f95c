"""A run's folder: whose it is, what is in it, and that one renderer at a time writes it."""

import errno
import hashlib
import os
import socket
from pathlib import Path

from genpipe.render.journal import DONE, Entry, Journal
from genpipe.workers.storage import Folder, open_storage

# What a run writes; a folder that has one of them and no journal is somebody else's.
OUTPUTS = ("images", "metadata.jsonl", "failures.jsonl", "report.json", "index.html")


class OutputFolder:
    """The folder of a run.

    Args:
        root: made if missing.
        storage: fsspec URL that images go to instead.

    Raises:
        ValueError: the storage cannot be used.
    """

    def __init__(self, root: Path, storage: str | None = None) -> None:
        self.root = Path(os.path.abspath(root))
        self.shown = str(root)
        self.url = str(self.root) if storage is None else storage
        self.local = storage is None
        self.files = open_storage(self.url)
        self._lock: int | None = None
        self._opened: dict[Path, tuple[int, int] | None] = {}

    def open(self) -> Journal:
        """Take the folder, and its journal.

        Raises:
            ValueError: it holds somebody else's files, or its journal is damaged or another version's.
            OSError: it cannot be written, or another renderer is at work in it.
        """
        hidden = self.root / ".genpipe"
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"{self.shown} is a file: give a folder to render into")
        if not hidden.exists():
            for name in OUTPUTS:
                if (self.root / name).exists():
                    raise ValueError(f"{self.shown} has {name}, which no render of it wrote: give a new --out")
        try:
            hidden.mkdir(parents=True, exist_ok=True)
            self._take_lock(hidden / "lock")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise OSError(error.errno, f"cannot write into this folder: {error.strerror}", self.shown) from error
        try:
            Folder(self.root).sweep()
            journal = Journal(hidden / "journal.sqlite")
        except BaseException:
            self.close()
            raise
        self._opened = {path: _identity(path) for path in (hidden / "lock", journal.path)}
        return journal

    def close(self) -> None:
        """Let another renderer have it."""
        if self._lock is not None:
            Folder(self.root).sweep()
            os.close(self._lock)
            self._lock = None

    def check_there(self) -> None:
        """Make sure that the folder is the one that was opened.

        Raises:
            OSError: it has been removed, or replaced by another; what it held is lost.
        """
        if any(_identity(path) != identity for path, identity in self._opened.items()):
            raise OSError(f"{self.shown} was removed or replaced during the run: the same command begins it again")

    def check(self, journal: Journal, suffix: str, verify: bool) -> int:
        """Look at the finished images: those whose size (or, with `verify`, hash) is wrong are to be drawn again.

        Returns:
            How many.
        """
        wrong = 0
        for window in journal.windows(state=DONE, plan=False):
            bad = [entry.number for entry in window if not self._whole(entry, suffix, verify)]
            if bad:
                wrong += len(bad)
                with journal:
                    journal.reset(bad)
                    journal.set("results_are_written", False)
        return wrong

    def _whole(self, entry: Entry, suffix: str, verify: bool) -> bool:
        path = image_path(entry, suffix)
        if self.files.size(path) != entry.size:
            return False
        return not verify or hashlib.sha256(self.files.read(path)).digest() == entry.sha256

    def _take_lock(self, path: Path) -> None:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(lock)
        except OSError as error:
            owner = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            if error.errno is None:
                raise
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise OSError(error.errno, f"cannot lock this file: {error.strerror}", str(path)) from error
            raise OSError(
                f"{self.shown} is being rendered into by {owner}: wait for it, or give another --out"
            ) from None
        os.ftruncate(lock, 0)
        os.lseek(lock, 0, os.SEEK_SET)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._lock = lock


def image_path(entry: Entry, suffix: str) -> str:
    """Say where an image's file is, below the run's folder."""
    return f"images/{entry.name}" if entry.name else f"images/{entry.id.hex()}{suffix}"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lock(file: int) -> None:
    """Lock an open file for as long as this process has it open; raises OSError at once where another has."""
    try:
        import fcntl
    except ImportError:
        _lock_on_windows(file)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(file: int) -> None:
    try:
        from msvcrt import LK_NBLCK, locking  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        raise OSError(
            "this system has no locks for files, which genpipe render needs: use Linux, macOS or Windows"
        ) from None
    # A byte beyond the text: others cannot read what is locked here.
    os.lseek(file, 1 << 20, os.SEEK_SET)
    try:
        locking(file, LK_NBLCK, 1)
    finally:
        os.lseek(file, 0, os.SEEK_SET)
