"""The tables of a journal, and the check of one that is found: its values may be anything."""

import json
import math
import re
import sqlite3
from typing import Any

from genpipe.filenames import collision_key, safe_name
from genpipe.messages import one_line, quoted
from genpipe.render.recorded import recorded_request
from genpipe.request import MAX_SEED

SCHEMA = 3
PENDING, DONE, FAILED = range(3)

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE settings (number INTEGER PRIMARY KEY, json TEXT NOT NULL UNIQUE);
CREATE TABLE rejects (line INTEGER NOT NULL, reason TEXT NOT NULL, text TEXT NOT NULL);
"""
PICTURES = """
CREATE TABLE pictures (
    number INTEGER PRIMARY KEY,      -- in the order of planning
    id BLOB NOT NULL,                -- unique, see INDEX
    plan INTEGER NOT NULL,           -- the last reading of the input that asked for it
    line INTEGER NOT NULL,           -- of the input
    settings INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    seed INTEGER NOT NULL,           -- as signed
    asked_name TEXT,                 -- the file name asked for, made safe
    name TEXT,                       -- the file name given, unless it is the id
    name_key TEXT,                   -- of the file name given: equal where some disk takes two names for one
    extra TEXT,                      -- fields carried through, JSON
    state INTEGER NOT NULL DEFAULT 0,
    size INTEGER,                    -- of the file, in bytes
    sha256 BLOB,                     -- of the file
    detail TEXT                      -- why it failed; or, of a judged image, JSON
);
CREATE UNIQUE INDEX name_keys ON pictures (name_key) WHERE name_key IS NOT NULL;
"""
# Built when a first plan has ended: sorting a million ids is many times faster than inserting them one by one.
INDEX = "CREATE UNIQUE INDEX IF NOT EXISTS ids ON pictures (id)"
# What `meta` holds, None where it was not set.
META: dict[str, type] = {"schema": int, "plan": int, "source": str, "settings": dict, "results_are_written": bool}

# True of what the columns may hold; SQLite keeps values of any type in any column.
_SOUND = {
    "number": "number > 0",
    "id": "typeof(id) = 'blob' AND length(id) = 16",
    "plan": "typeof(plan) = 'integer' AND plan > 0",
    "line": "typeof(line) = 'integer' AND line > 0",
    "settings": "settings IN (SELECT number FROM settings)",
    "prompt": "typeof(prompt) = 'text'",
    "seed": "typeof(seed) = 'integer'",
    "file name": "typeof(asked_name) IN ('text', 'null') AND typeof(name) IN ('text', 'null')",
    "other fields": "extra IS NULL OR (typeof(extra) = 'text' AND json_valid(extra) AND json_type(extra) = 'object')",
    "state": f"typeof(state) = 'integer' AND state BETWEEN {PENDING} AND {FAILED}",
    "size": f"typeof(size) = iif(state = {DONE}, 'integer', 'null')",
    "hash": f"typeof(sha256) = iif(state = {DONE}, 'blob', 'null')",
    "detail": f"typeof(detail) = 'text' OR (detail IS NULL AND state <> {FAILED})",
}

_NAMED = (
    "SELECT number, asked_name, name, name_key FROM pictures"
    " WHERE asked_name IS NOT NULL OR name IS NOT NULL OR name_key IS NOT NULL"
)


def check(db: sqlite3.Connection) -> None:
    """Read a whole journal, of this version or turned into it, and make sure that a renderer could have written it.

    Raises:
        ValueError: it is another version's, or holds what no renderer writes; names what.
        sqlite3.Error: it cannot be read.
    """
    if db.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
        raise ValueError("the journal is damaged")
    _upgrade(db)
    found, expected = _objects(db), _expected()
    if found.get("meta") == expected["meta"]:
        for (value,) in db.execute("SELECT value FROM meta WHERE key = 'schema'"):
            if (version := read_json(value, int, "its version")) != SCHEMA:
                raise ValueError(
                    f"this journal has version {quoted(version)}, and this genpipe writes version {SCHEMA}"
                )
    if {"ids": expected["ids"], **found} != expected:
        raise ValueError("this is not a journal of genpipe")
    for key, kind in META.items():
        for (value,) in db.execute("SELECT value FROM meta WHERE key = ?", (key,)):
            read = read_json(value, kind, f"its {key}")
            if kind is int and read is not None and not 0 <= read < 1 << 62:
                raise _damaged(f"its {key}")
    for number, text in db.execute("SELECT number, json FROM settings"):
        _check_settings(text, f"its settings {number}")
    for line, reason, text in db.execute("SELECT line, reason, text FROM rejects"):
        if [type(line), type(reason), type(text)] != [int, str, str]:
            raise _damaged(f"the row of line {quoted(line)} that cannot be drawn")
    whole = " AND ".join(f"({sound})" for sound in _SOUND.values())
    for (number,) in db.execute(f"SELECT number FROM pictures WHERE ({whole}) IS NOT TRUE LIMIT 1").fetchall():
        for name, sound in _SOUND.items():
            if db.execute(f"SELECT 1 FROM pictures WHERE number = ? AND ({sound}) IS NOT TRUE", (number,)).fetchone():
                raise _damaged(f"the {name} of image {number}")
    for number, asked, name, key in db.execute(_NAMED):
        fits = key is None if name is None else key == collision_key(name)
        if not fits or any(path is not None and safe_name(path, ".png") != path for path in {asked, name}):
            raise _damaged(f"the file name {quoted(asked if name is None else name)} of image {number}")
    for number, text in db.execute(f"SELECT number, detail FROM pictures WHERE state = {DONE} AND detail IS NOT NULL"):
        _check_score(text, f"the score of image {number}")


def _upgrade(db: sqlite3.Connection) -> None:
    """Turn a journal of version 2, which had another name for one column, into one of version 3; leave all others alone."""
    expected = _expected()
    expected["pictures"] = expected["pictures"].replace("asked_name", "wish")
    if {"ids": expected["ids"], **_objects(db)} == expected:
        db.executescript(
            "BEGIN; ALTER TABLE pictures RENAME COLUMN wish TO asked_name;"
            "UPDATE meta SET value = '3' WHERE key = 'schema' AND value = '2'; COMMIT"
        )


def read_json(text: Any, kind: type, what: str) -> Any:
    """Read a value of the journal, of this type or null.

    Raises:
        ValueError: it is something else; says that the journal is damaged, and by `what` where.
    """
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise _damaged(what) from None
    if value is not None and type(value) is not kind and kind is not object:
        raise _damaged(what)
    return value


def _check_settings(text: Any, what: str) -> None:
    settings = read_json(text, dict, what)
    try:
        recorded_request(settings or {})
    except ValueError as error:
        raise ValueError(f"{_damaged(what)}: {one_line(str(error), 150)}") from None


def _check_score(text: Any, what: str) -> None:
    found = read_json(text, dict, what) or {}
    seed, total, parts = found.get("seed", 0), found.get("total"), found.get("score")
    number = total is None or (type(total) in (int, float) and math.isfinite(total))
    if type(seed) is not int or not 0 <= seed <= MAX_SEED or not number or not isinstance(parts, dict | None):
        raise _damaged(what)


def _damaged(what: str) -> ValueError:
    return ValueError(f"the journal was changed or is damaged at {what}")


def _objects(db: sqlite3.Connection) -> dict[str, str]:
    """Give what a database consists of, tables and all else, by name: the text of each, without comments and blanks."""
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {str(name): re.sub(r"--.*|\s+", "", str(sql)) for name, sql in rows}


def _expected() -> dict[str, str]:
    db = sqlite3.connect(":memory:")
    db.executescript(TABLES + PICTURES + INDEX)
    objects = _objects(db)
    db.close()
    return objects
