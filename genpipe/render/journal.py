"""The journal: every picture of a render folder and what became of it, in one SQLite file.

The coordinator alone writes it. A picture is written to the disk first and journalled after, so whatever moment a
process dies at, a picture that the journal calls done is there; one that it does not know of is drawn again.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from genpipe.filenames import numbered
from genpipe.render.identity import canonical_json

SCHEMA = 1
PENDING, DONE, FAILED = range(3)

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (number INTEGER PRIMARY KEY, json TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS rejects (line INTEGER NOT NULL, reason TEXT NOT NULL, text TEXT NOT NULL);
"""
_PICTURES = """
CREATE TABLE IF NOT EXISTS pictures (
    number INTEGER PRIMARY KEY,      -- in the order of planning
    id BLOB NOT NULL,                -- unique, see _INDEX
    plan INTEGER NOT NULL,           -- the last reading of the input that asked for it
    line INTEGER NOT NULL,           -- of the input
    settings INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    seed INTEGER NOT NULL,           -- as signed
    wish TEXT,                       -- the file name asked for
    name TEXT,                       -- the file name given, unless it is the id
    extra TEXT,                      -- fields carried through, JSON
    state INTEGER NOT NULL DEFAULT 0,
    size INTEGER,                    -- of the file, in bytes
    sha256 BLOB,                     -- of the file
    detail TEXT                      -- why it failed; or, of a judged picture, JSON
);
CREATE UNIQUE INDEX IF NOT EXISTS names ON pictures (name COLLATE NOCASE) WHERE name IS NOT NULL;
"""
# Built when a first plan has ended: sorting a million ids is many times faster than inserting them one by one.
_INDEX = "CREATE UNIQUE INDEX IF NOT EXISTS ids ON pictures (id)"
_INSERT = "INSERT INTO pictures (id, line, settings, prompt, seed, wish, extra, plan) VALUES (?, ?, ?, ?, ?, ?, ?, {})"
_UPSERT = (
    f"{_INSERT} ON CONFLICT (id) DO UPDATE SET plan = excluded.plan, line = excluded.line, extra = excluded.extra"
    " WHERE plan <> excluded.plan"
)
_COLUMNS = "number, id, line, settings, prompt, seed, name, wish, extra, state, size, sha256, detail"


# A picture as the planner gives it: id, line, settings, prompt, seed, the file name asked for, extra.
Planned = tuple[bytes, int, int, str, int, str | None, str | None]


class Entry(NamedTuple):
    """A picture as the journal knows it: the columns of its table."""

    number: int
    id: bytes
    line: int
    settings: int
    prompt: str
    seed: int
    name: str | None
    wish: str | None
    extra: str | None
    state: int
    size: int | None
    sha256: bytes | None
    detail: str | None


class Journal:
    """An open journal.

    Raises:
        ValueError: the file is no journal, or another version's.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settings: dict[int, dict[str, Any]] = {}
        self._fresh = False
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            # A transaction that has been committed survives the death of every process; one fsync a commit would buy
            # power cuts too, and those the sizes of the files tell of.
            self._db.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -65536;"
                "PRAGMA temp_store = FILE; PRAGMA busy_timeout = 10000;"
            )
            self._db.executescript(_TABLES + _PICTURES)
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: the journal cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is damaged ({error}): give a new --out") from error
        schema = self.get("schema")
        if schema is None:
            self.set("schema", SCHEMA)
        elif schema != SCHEMA:
            raise ValueError(f"{path} has version {schema}, this genpipe writes version {SCHEMA}: give a new --out")
        self.plan: int = self.get("plan") or 0

    def close(self) -> None:
        self._db.close()

    def get(self, key: str) -> Any:
        """A value that `set` kept; None for a key that was never set."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set(self, key: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    # Planning

    def begin_plan(self) -> None:
        """Begin a reading of the input; one that never ends leaves no `source`, so that it is read again.

        While nothing has been drawn there is nothing to keep, and it begins with an empty table that has no index.
        """
        self.plan += 1
        self.set("plan", self.plan)
        self.set("source", None)
        self._db.execute("DELETE FROM rejects")
        self._fresh = self._db.execute(f"SELECT 1 FROM pictures WHERE state <> {PENDING} LIMIT 1").fetchone() is None
        if self._fresh:
            self._db.executescript(f"BEGIN; DROP TABLE pictures; {_PICTURES} COMMIT")

    def end_plan(self, source: str | None) -> None:
        """Give the pictures their names and note that the input, with the hash `source`, has been read to its end."""
        with self:
            self._index_ids()
            self._assign_names()
            self.set("source", source)

    def settings_number(self, settings: dict[str, Any]) -> int:
        text = canonical_json(settings)
        self._db.execute("INSERT OR IGNORE INTO settings (json) VALUES (?)", (text,))
        return self._db.execute("SELECT number FROM settings WHERE json = ?", (text,)).fetchone()[0]

    def settings(self, number: int) -> dict[str, Any]:
        if number not in self._settings:
            if len(self._settings) > 10_000:
                self._settings.clear()
            row = self._db.execute("SELECT json FROM settings WHERE number = ?", (number,)).fetchone()
            self._settings[number] = json.loads(row[0])
        return self._settings[number]

    def add(self, pictures: Iterable[Planned]) -> None:
        """Add pictures to the plan. One that is there already keeps its state, its name and its first line."""
        self._db.executemany(
            (_INSERT if self._fresh else _UPSERT).format(self.plan),
            [p if p[4] < 1 << 63 else (*p[:4], p[4] - (1 << 64), *p[5:]) for p in pictures],
        )

    def reject(self, line: int, reason: str, text: str) -> None:
        """Note a row that cannot be drawn."""
        self._db.execute("INSERT INTO rejects VALUES (?, ?, ?)", (line, reason, text))

    def rejects(self) -> Iterator[tuple[int, str, str]]:
        yield from self._db.execute("SELECT line, reason, text FROM rejects ORDER BY line")

    def _index_ids(self) -> None:
        """Of pictures that were asked for twice the first stays."""
        try:
            self._db.execute(_INDEX)
        except sqlite3.IntegrityError:
            self._db.execute("DELETE FROM pictures WHERE number NOT IN (SELECT min(number) FROM pictures GROUP BY id)")
            self._db.execute(_INDEX)

    def _assign_names(self) -> None:
        """The names asked for, "-2" and so on added where two ask for one; a row that changed takes its old one over."""
        last: dict[str, int] = {}
        after = 0
        while unnamed := self._db.execute(
            "SELECT number, wish FROM pictures WHERE number > ? AND plan = ? AND wish IS NOT NULL AND name IS NULL "
            "ORDER BY number LIMIT 4096",
            (after, self.plan),
        ).fetchall():
            for number, wish in unnamed:
                name, count = wish, last.get(wish, 1)
                while not self._take_name(number, name):
                    count += 1
                    name = numbered(wish, count)
                    last[wish] = count
            after = unnamed[-1][0]

    def _take_name(self, number: int, name: str) -> bool:
        for _ in range(2):
            try:
                self._db.execute("UPDATE pictures SET name = ? WHERE number = ?", (name, number))
                return True
            except sqlite3.IntegrityError:
                self._db.execute(
                    "DELETE FROM pictures WHERE name = ? COLLATE NOCASE AND name IS NOT NULL AND plan < ?",
                    (name, self.plan),
                )
        return False

    # Rendering

    def __enter__(self) -> Self:
        self._db.execute("BEGIN")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")

    def entries(self, *, state: int | None = None, plan: bool = True, after: int = 0, limit: int = -1) -> list[Entry]:
        """Pictures in order, those numbered above `after`; `plan`: only those that the last plan asks for."""
        wanted = ["number > ?", *(["plan = ?"] if plan else []), *(["state = ?"] if state is not None else [])]
        values = [after, *([self.plan] if plan else []), *([state] if state is not None else []), limit]
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM pictures WHERE {' AND '.join(wanted)} ORDER BY number LIMIT ?", values
        )
        return [Entry._make(row) if row[5] >= 0 else Entry._make(row)._replace(seed=row[5] + (1 << 64)) for row in rows]

    def windows(self, size: int = 4096, **which: Any) -> Iterator[list[Entry]]:
        """`entries`, some thousands at a time."""
        after = 0
        while window := self.entries(after=after, limit=size, **which):
            yield window
            after = window[-1].number

    def counts(self) -> dict[int, int]:
        """How many pictures of the plan are in each state."""
        rows = self._db.execute("SELECT state, count(*) FROM pictures WHERE plan = ? GROUP BY state", (self.plan,))
        return {PENDING: 0, DONE: 0, FAILED: 0, **dict(rows)}

    def done(self, results: Sequence[tuple[int, int, bytes, str | None]]) -> None:
        """Note pictures that are on the disk: (number, size, SHA-256, detail)."""
        self._db.executemany(
            f"UPDATE pictures SET state = {DONE}, size = ?, sha256 = ?, detail = ? WHERE number = ?",
            [(size, digest, detail, number) for number, size, digest, detail in results],
        )

    def failed(self, results: Sequence[tuple[int, str]]) -> None:
        """Note pictures that cannot be drawn: (number, reason)."""
        self._db.executemany(
            f"UPDATE pictures SET state = {FAILED}, detail = ? WHERE number = ?",
            [(reason, number) for number, reason in results],
        )

    def reset(self, numbers: Iterable[int]) -> None:
        """These are to be drawn again."""
        self._db.executemany(
            f"UPDATE pictures SET state = {PENDING}, size = NULL, sha256 = NULL, detail = NULL WHERE number = ?",
            ((number,) for number in numbers),
        )
