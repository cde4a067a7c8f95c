"""Samples of files beside checkpoints: images and their texts, lists of prompts, journals, classifiers, captions, states."""

import json
import pickle
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from random import Random

from genpipe.render.options import Options
from genpipe.render.run import Run
from scripts.evaluate.fuzz.material import Instant, Material
from scripts.evaluate.fuzz.sandbox import Sample, command, function
from scripts.evaluate.fuzz.values import WORDS, as_json, mutated, odd, spoiled, word


def images(rng: Random, material: Material, folder: Path) -> Sample:
    """An image of some format, sound or not, by a right or a wrong name, for each command that opens images."""
    kind = rng.choice(sorted(material.images))
    data = material.images[kind]
    if rng.random() < 0.7:
        data = mutated(rng, data)
    path = folder / f"x{rng.choice(('.png', '.jpg', '.webp', '.gif', '.eps', '.tiff', '', '.txt'))}"
    folder.mkdir(parents=True)
    path.write_bytes(data)
    if rng.random() < 0.2:  # among others, in a folder
        (folder / "sound.png").write_bytes(material.images["PNG"])
        path = folder
    how = rng.choice(
        (
            ["classify", str(path)],
            ["classify", str(path), "--weights", str(material.classifier), "--json"],
            ["--from-image", str(path), "-q"],
            ["vision", "inspect", str(path), "--weights", str(material.classifier)],
        )
    )
    return command(f"{how[0]} {kind} as {path.name}", how)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def chunks(rng: Random, material: Material, folder: Path) -> Sample:
    """The texts of a PNG that say what made it are spoiled; then it is drawn again."""
    data = material.image.read_bytes()
    parts, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    texts = [index for index, (kind, _) in enumerate(parts) if kind == b"iTXt"]
    index = rng.choice(texts)
    kind, body = parts[index]
    head, text = body[: -len(body.split(b"\0", 5)[-1])], body.split(b"\0", 5)[-1]
    what = rng.random()
    said = "bytes"
    if what < 0.6 and body.startswith(b"genpipe"):
        made = json.loads(text)
        key = rng.choice(sorted(made))
        made = {**made, key: odd(rng)} if rng.random() < 0.7 else spoiled(rng, made)
        text, said = as_json(made), f"{key}={made.get(key) if isinstance(made, dict) else made!r:.80}"
    elif what < 0.8:
        text = mutated(rng, text)
    else:
        kind = rng.choice((b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP"))
        head = mutated(rng, head)
    parts[index] = (kind, head + text)
    spoiled_data = data[:8] + b"".join(_chunk(*part) for part in parts)
    if rng.random() < 0.1:
        spoiled_data = mutated(rng, spoiled_data)
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(spoiled_data)
    arguments = ["--from-image", str(folder / "x.png"), "-q", "--steps", "1", "--size", "16x16"]
    return command(f"{kind!r}: {said!r:.100}", [*arguments, *(["--prompt", "cat"] if rng.random() < 0.3 else [])])


_ROWS = {
    ".txt": b'a lion\n# no\n--prompt "a ship" --steps 2 --seed 4\nfish --width 16\n',
    ".csv": b'prompt,seed,n,file_name\n"a lion, big",7,1,a.png\nfish,,2,\n',
    ".jsonl": b'{"prompt": "a lion", "seed": 7, "file_name": "a/b.png"}\n{"prompt": "fish", "n": 2, "mood": [1]}\n',
}
_COLUMNS = (
    "prompt",
    "negative_prompt",
    "seed",
    "n",
    "steps",
    "guidance_scale",
    "sampler",
    "width",
    "file_name",
    "mood",
)


def _render(name: str, source: Path | list[object], out: Path) -> Sample:
    def run() -> None:
        made = Run(source, out, Options.of(steps=1), engine=Instant())
        for count, _ in enumerate(made.pictures(), 1):
            if count == 6:
                made.stop()
        lost = [path for path in _listed(out) if not (out / path).is_file()]
        if lost:
            raise AssertionError(f"an image is lost: {lost[0]}")

    return function(name, run)


def _listed(out: Path) -> list[str]:
    path = out / "metadata.jsonl"
    return [json.loads(line)["file_name"] for line in path.read_text().splitlines()] if path.is_file() else []


def manifests(rng: Random, material: Material, folder: Path) -> Sample:
    """A list of prompts with odd values or spoiled bytes, rendered without networks."""
    suffix = rng.choice(sorted(_ROWS))
    folder.mkdir(parents=True)
    what = rng.random()
    if what < 0.5:
        data = mutated(rng, _ROWS[suffix])
    elif suffix == ".jsonl":
        rows = [{"prompt": "a"} | {rng.choice(_COLUMNS): odd(rng) for _ in range(2)} for _ in range(2)]
        data = b"\n".join(map(as_json, rows))
    elif suffix == ".csv":
        column = rng.choice(_COLUMNS)
        data = f'prompt,{column}\na,"{word(rng)}"\nb,{word(rng)}\n'.encode("utf-8", "surrogatepass")
    else:
        data = f'--prompt "a" --{rng.choice(_COLUMNS)} {word(rng)}\n{word(rng)}\n'.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        data = data.decode("utf-8", "replace").encode(
            rng.choice(("utf-16", "utf-32", "utf-16-be", "cp1251")), "replace"
        )
    path = folder / f"rows{suffix}"
    path.write_bytes(data)
    return _render(f"{suffix}: {data[:100]!r}", path, folder / "out")


def journals(rng: Random, material: Material, folder: Path) -> Sample:
    """The journal of a finished run is changed, in a value or in bytes, and the run goes on."""
    shutil.copytree(material.rendered, folder)
    path = folder / ".genpipe" / "journal.sqlite"
    if rng.random() < 0.3:
        data = mutated(rng, path.read_bytes())
        path.write_bytes(data)
        said = "bytes"
    else:
        with closing(sqlite3.connect(path)) as journal:
            tables = [row[0] for row in journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = rng.choice(sorted(tables))
            columns = [row[1] for row in journal.execute(f"PRAGMA table_info({table})")]
            column, value = rng.choice(columns), odd(rng)
            value = value if isinstance(value, int | float | str | None) else json.dumps(value)
            value = max(min(value, 2**63 - 1), -(2**63)) if isinstance(value, int) else value
            said = f"{table}.{column}={value!r:.80}"
            try:
                journal.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = 1 OR 1", (value,))
                journal.commit()
            except (sqlite3.Error, UnicodeError):
                said += " (refused)"
    rows: list[object] = [{"prompt": "a red cat"}, {"prompt": "a ship", "seed": 5}, {"prompt": "a new one"}]
    return _render(said, rows, folder)


def weights(rng: Random, material: Material, folder: Path) -> Sample:
    """A classifier's file: its metadata, its header, or the opcodes of a pickle."""
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(material.images["PNG"])
    more: list[str] = []
    if rng.random() < 0.35:
        path, more = folder / "x.pth", ["--allow-pickle", "-m", rng.choice(("lenet5", "resnet18", "x"))]
        data = (
            material.pickle.read_bytes()
            if rng.random() < 0.5
            else pickle.dumps(odd(rng), protocol=rng.choice((0, 2, 4)))
        )
        data = mutated(rng, data)
    else:
        path, data = folder / "x.safetensors", material.classifier.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        what = rng.random()
        if what < 0.4:
            key, value = rng.choice(("architecture", "classes", "preprocess", "format")), odd(rng)
            header["__metadata__"][key] = value if rng.random() < 0.3 else json.dumps(value)
        elif what < 0.6:
            settings = json.loads(header["__metadata__"]["preprocess"])
            header["__metadata__"]["preprocess"] = json.dumps(spoiled(rng, settings))
        else:
            header = spoiled(rng, header)
        text = as_json(header)
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
        data = mutated(rng, data) if rng.random() < 0.15 else data
    path.write_bytes(data)
    return command(f"{path.name}: {data[8:90]!r}", ["classify", str(folder / "x.png"), "--weights", str(path), *more])


def captions(rng: Random, material: Material, folder: Path) -> Sample:
    """A folder of images and captions, read as for training."""
    from genpipe.training.folder import read_folder

    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        data = material.images["PNG"]
        (folder / name).write_bytes(mutated(rng, data) if rng.random() < 0.2 else data)
    rows = [{"file_name": "a.png", "text": "a lion"}, {"file_name": "b.png", "text": "a ship"}]
    data = b"\n".join(as_json(spoiled(rng, row)) for row in rows)
    data = mutated(rng, data) if rng.random() < 0.3 else data
    if rng.random() < 0.8:
        (folder / "metadata.jsonl").write_bytes(data)
    else:
        (folder / "a.txt").write_bytes(mutated(rng, rng.choice(WORDS).encode("utf-8", "surrogatepass")))
    return function(f"{data[:100]!r}", lambda: read_folder(folder, 8))
