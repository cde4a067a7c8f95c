"""What a model is by content: a hash of its files, whatever they are called and wherever they lie."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from genpipe.checkpoints.families import PARTS
from genpipe.checkpoints.foreign import INDEX, foreign
from genpipe.checkpoints.hub import open_source
from genpipe.checkpoints.library import NAMED, located
from genpipe.files import atomic_write, cache_folder

# Files that images depend on, and those of pipelines that diffusers draws.
_ENDINGS = (".json", ".txt", ".safetensors")
_ALL_ENDINGS = (*_ENDINGS, ".model", ".jinja", ".bin", ".py")


def checkpoint_files(
    path_or_id: str | Path,
    revision: str | None,
    *,
    file: str | None = None,
    model_dir: str | Path | None = None,
    parts: Mapping[str, str | None] | None = None,
) -> list[tuple[str, Path]]:
    """(name, path) of the files that a checkpoint is made of, those on this machine.

    Args:
        path_or_id, revision, file, model_dir: as `load_checkpoint` takes them.
        parts: files and folders given beside it, by what they are for, several with commas between them.
    """
    beside = [
        (f"{part}/{each.name}", each)
        for part, paths in (parts or {}).items()
        for path in (paths or "").split(",")
        if path and part != "base"
        for each in _files_of(_path_of(part, path, model_dir))
    ]
    if base := (parts or {}).get("base"):
        beside += [(f"base/{name}", path) for name, path in checkpoint_files(base, None, model_dir=model_dir)]
    path_or_id = located(path_or_id, model_dir)
    path = Path(os.path.expanduser(str(path_or_id)))
    if path.is_file():
        return [("checkpoint", path), *beside]
    source = open_source(path_or_id, revision, file=file)
    if source.single is not None:
        only = source.find(source.single)
        return [*([] if only is None else [("checkpoint", only)]), *beside]
    wanted = foreign(source) if source.find(INDEX) is not None else None
    names = [
        f"{folder}/{name}"
        for folder in (PARTS if wanted is None else wanted.parts)
        for name in source.listing(folder)
        if name.endswith(_ENDINGS if wanted is None else _ALL_ENDINGS)
    ]
    root = getattr(source, "root", None)
    paths = [(name, Path(root) / name) for name in (INDEX, "genpipe.json", *names)] if root else []
    return [(name, path) for name, path in (*paths, *beside) if path.is_file()]


def _path_of(part: str, path: str, model_dir: str | Path | None) -> Path:
    found = located(path, model_dir, NAMED[part]) if part in NAMED else path
    return Path(os.path.expanduser(str(found)))


def _files_of(path: Path) -> list[Path]:
    """A file, or the configs and weights in a folder and in the folders in it."""
    inside = [path] if path.is_file() else [*path.glob("*"), *path.glob("*/*")]
    return [each for each in inside if each.suffix in (".json", ".txt", ".safetensors") or each == path]


def fingerprint(files: Iterable[tuple[str, Path]], cache: Path | None = None) -> str:
    """SHA-256, in hex, of a model's files, given as (name, path).

    Args:
        files: the same names with the same bytes give the same fingerprint, wherever they lie.
        cache: a JSON file that keeps each file's hash by path, size and time; by default in the user's cache folder.
    """
    cache = _cache_file() if cache is None else cache
    known = _read_cache(cache)
    before = len(known)
    entries = [[name, _hash_of(path, known)] for name, path in sorted(files)]
    if len(known) > before:
        _write_cache(cache, known)
    return hashlib.sha256(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path, cache: Path | None = None) -> str:
    """SHA-256, in hex, of one file; kept as `fingerprint` keeps it. A1111's hash of a checkpoint is its first ten digits."""
    cache = _cache_file() if cache is None else cache
    known = _read_cache(cache)
    before, found = len(known), _hash_of(path, known)
    if len(known) > before:
        _write_cache(cache, known)
    return found


def data_sha256(path: Path) -> str:
    """SHA-256, in hex, of a safetensors file without its header, which is A1111's hash of a LoRA (its first twelve digits):
    metadata may be edited without changing it."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(path: Path, known: dict[str, str]) -> str:
    """A file's hash, looked up by path, size and time, or else computed and entered."""
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return known[key]


def _cache_file() -> Path:
    return cache_folder() / "fingerprints.json"


def _read_cache(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(path: Path, known: dict[str, str]) -> None:
    with suppress(OSError):  # it only saves time
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps(known), encoding="utf-8")
