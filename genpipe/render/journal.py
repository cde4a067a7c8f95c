"""The journal: every image of a render folder and what became of it, in one SQLite file.

The coordinator alone writes it. An image is written to the disk first and journalled after, so at whatever moment a process
dies, an image that the journal calls done is there; one that it does not know of is drawn again.

A journal that is found is read as input: `journal_schema.check` refuses one that somebody changed, or a disk damaged.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from genpipe.filenames import collision_key, numbered
from genpipe.messages import one_line
from genpipe.render.identity import canonical_json
from genpipe.render.journal_schema import DONE, FAILED, INDEX, META, PENDING, PICTURES, SCHEMA, TABLES, check, read_json

__all__ = ["DONE", "FAILED", "PENDING", "Entry", "Journal", "Planned"]

_INSERT = (
    "INSERT INTO pictures (id, line, settings, prompt, seed, asked_name, extra, plan) VALUES (?, ?, ?, ?, ?, ?, ?, {})"
)
_UPSERT = (
    f"{_INSERT} ON CONFLICT (id) DO UPDATE SET plan = excluded.plan, line = excluded.line, extra = excluded.extra"
    " WHERE plan <> excluded.plan"
)
# Errors that are the disk's, another process's or the system's, and not the file's.
_OF_THE_SYSTEM = {
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY),
    *(
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
    ),
}
_COLUMNS = "number, id, line, settings, prompt, seed, name, extra, state, size, sha256, detail"


# An image as the planner gives it: id, line, settings, prompt, seed, the file name asked for, extra.
Planned = tuple[bytes, int, int, str, int, str | None, str | None]


class Entry(NamedTuple):
    """An image as the journal knows it: columns of its table, where they are explained."""

    number: int
    id: bytes
    line: int
    settings: int
    prompt: str
    seed: int
    name: str | None
    extra: str | None
    state: int
    size: int | None
    sha256: bytes | None
    detail: str | None

    @property
    def carried(self) -> dict[str, Any]:
        """The row's other fields. Raises ValueError where they are not what a planner wrote."""
        return {} if self.extra is None else read_json(self.extra, dict, f"the other fields of image {self.number}")

    @property
    def judged(self) -> dict[str, Any] | None:
        """What the judge said of an image that is done, or None. Raises ValueError as `carried` does."""
        if self.detail is None or self.state != DONE:
            return None
        return read_json(self.detail, dict, f"the score of image {self.number}")


class Journal:
    """An open journal.

    Raises:
        ValueError: the file is not a journal, was changed, is damaged, or is another version's.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settings: dict[int, dict[str, Any]] = {}
        self._fresh = False
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file: remove it, or give a new --out")
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        try:
            # A transaction that has been committed survives the death of every process; one fsync per commit would buy
            # power cuts too, and those the sizes of the files tell of.
            self._run(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -65536;"
                "PRAGMA temp_store = MEMORY; PRAGMA busy_timeout = 10000; PRAGMA trusted_schema = OFF;"
            )
            found = self._rows("SELECT 1 FROM sqlite_master LIMIT 1")
            if not found:
                self._run(f"BEGIN; {TABLES} {PICTURES} COMMIT;")
                self.set("schema", SCHEMA)
            try:
                check(self._db)
            except sqlite3.Error as error:
                raise self._failure(error) from error
            except ValueError as error:
                raise ValueError(f"{path}: {error}; give a new --out") from None
        except BaseException:
            self._db.close()
            raise
        self.plan: int = self.get("plan") or 0

    def close(self) -> None:
        self._db.close()

    def get(self, key: str) -> Any:
        """Give a value that `set` kept; None for a key that was never set.

        Raises:
            ValueError: it is not of the key's type.
        """
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        return read_json(rows[0][0], META.get(key, object), f"its {key}") if rows else None

    def set(self, key: str, value: Any) -> None:
        self._change("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    # Planning

    def begin_plan(self) -> None:
        """Begin a reading of the input; one that never ends leaves no `source`, so that it is read again.

        While nothing has been drawn there is nothing to keep, and it begins with an empty table that has no index.
        """
        self.plan += 1
        self.set("plan", self.plan)
        self.set("source", None)
        self._change("DELETE FROM rejects")
        self._fresh = not self._rows(f"SELECT 1 FROM pictures WHERE state <> {PENDING} LIMIT 1")
        if self._fresh:
            self._run(f"BEGIN; DROP TABLE pictures; {PICTURES} COMMIT")

    def end_plan(self, source: str | None) -> None:
        """Give the images their names and note that the input, with the hash `source`, has been read to its end."""
        with self:
            self._index_ids()
            self._assign_names()
            self.set("source", source)

    def settings_number(self, settings: dict[str, Any]) -> int:
        text = canonical_json(settings)
        self._change("INSERT OR IGNORE INTO settings (json) VALUES (?)", (text,))
        return self._rows("SELECT number FROM settings WHERE json = ?", (text,))[0][0]

    def settings(self, number: int) -> dict[str, Any]:
        if number not in self._settings:
            if len(self._settings) > 10_000:
                self._settings.clear()
            ((text,),) = self._rows("SELECT json FROM settings WHERE number = ?", (number,))
            self._settings[number] = read_json(text, dict, f"its settings {number}")
        return self._settings[number]

    def all_settings(self) -> Iterator[dict[str, Any]]:
        """Give all settings that are there, one after the other."""
        for (number,) in self._rows("SELECT number FROM settings"):
            yield self.settings(number)

    def add(self, pictures: Iterable[Planned]) -> None:
        """Add images to the plan. One that is there already keeps its state, its name and its first line."""
        self._change_many(
            (_INSERT if self._fresh else _UPSERT).format(self.plan),
            [p if p[4] < 1 << 63 else (*p[:4], p[4] - (1 << 64), *p[5:]) for p in pictures],
        )

    def reject(self, line: int, reason: str, text: str) -> None:
        """Note a row that cannot be drawn."""
        self._change("INSERT INTO rejects VALUES (?, ?, ?)", (line, reason, text))

    def rejects(self) -> Iterator[tuple[int, str, str]]:
        """Give the line of each row that cannot be drawn, the reason and the row as it stands."""
        yield from self._rows("SELECT line, reason, text FROM rejects ORDER BY line")

    def _index_ids(self) -> None:
        """Index the images; of those that were asked for twice the first stays."""
        try:
            self._change(INDEX)
        except sqlite3.IntegrityError:
            self._change("DELETE FROM pictures WHERE number NOT IN (SELECT min(number) FROM pictures GROUP BY id)")
            self._change(INDEX)

    def _assign_names(self) -> None:
        """Give the names asked for, with "-2" and so on where some disk would take two for one; a row that changed takes
        its old one over."""
        last: dict[str, int] = {}
        after = 0
        while unnamed := self._rows(
            "SELECT number, asked_name FROM pictures"
            " WHERE number > ? AND plan = ? AND asked_name IS NOT NULL AND name IS NULL ORDER BY number LIMIT 4096",
            (after, self.plan),
        ):
            for number, asked in unnamed:
                key = collision_key(asked)
                name, count = asked, last.get(key, 1)
                while not self._take_name(number, name):
                    count += 1
                    name = numbered(asked, count)
                    last[key] = count
            after = unnamed[-1][0]

    def _take_name(self, number: int, name: str) -> bool:
        key = collision_key(name)
        for _ in range(2):
            try:
                self._change("UPDATE pictures SET name = ?, name_key = ? WHERE number = ?", (name, key, number))
                return True
            except sqlite3.IntegrityError:
                self._change("DELETE FROM pictures WHERE name_key = ? AND plan < ?", (key, self.plan))
        return False

    # Rendering

    def __enter__(self) -> Self:
        self._change("BEGIN")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._change("COMMIT" if kind is None else "ROLLBACK")

    def entries(self, *, state: int | None = None, plan: bool = True, after: int = 0, limit: int = -1) -> list[Entry]:
        """Give images in order, those numbered above `after`; `plan`: only those that the last plan asks for."""
        wanted = ["number > ?", *(["plan = ?"] if plan else []), *(["state = ?"] if state is not None else [])]
        values = [after, *([self.plan] if plan else []), *([state] if state is not None else []), limit]
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM pictures WHERE {' AND '.join(wanted)} ORDER BY number LIMIT ?", values
        )
        return [Entry._make(row) if row[5] >= 0 else Entry._make(row)._replace(seed=row[5] + (1 << 64)) for row in rows]

    def windows(self, size: int = 4096, **which: Any) -> Iterator[list[Entry]]:
        """Give `entries`, some thousands at a time."""
        after = 0
        while window := self.entries(after=after, limit=size, **which):
            yield window
            after = window[-1].number

    def counts(self) -> dict[int, int]:
        """Count the images of the plan in each state."""
        rows = self._rows("SELECT state, count(*) FROM pictures WHERE plan = ? GROUP BY state", (self.plan,))
        return {PENDING: 0, DONE: 0, FAILED: 0, **dict(rows)}

    def done(self, results: Sequence[tuple[int, int, bytes, str | None]]) -> None:
        """Note images that are on the disk: (number, size, SHA-256, detail)."""
        self._change_many(
            f"UPDATE pictures SET state = {DONE}, size = ?, sha256 = ?, detail = ? WHERE number = ?",
            [(size, digest, detail, number) for number, size, digest, detail in results],
        )

    def failed(self, results: Sequence[tuple[int, str]]) -> None:
        """Note images that cannot be drawn: (number, reason)."""
        self._change_many(
            f"UPDATE pictures SET state = {FAILED}, detail = ? WHERE number = ?",
            [(reason, number) for number, reason in results],
        )

    def reset(self, numbers: Iterable[int]) -> None:
        """Note that these are to be drawn again."""
        self._change_many(
            f"UPDATE pictures SET state = {PENDING}, size = NULL, sha256 = NULL, detail = NULL WHERE number = ?",
            [(number,) for number in numbers],
        )

    # SQLite's errors as those of everything else

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _change(self, statement: str, values: Sequence[Any] = ()) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _change_many(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        try:
            self._db.executemany(statement, values)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _run(self, script: str) -> None:
        try:
            self._db.executescript(script)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error) -> Exception:
        text, code = one_line(str(error), 150), getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _OF_THE_SYSTEM:
            return OSError(f"{self.path}: the journal cannot be read or written: {text}")
        return ValueError(f"{self.path}: the journal is damaged ({text}); give a new --out")
