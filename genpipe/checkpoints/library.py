"""Models by name: the files in a folder of models, also in that of an A1111 or a ComfyUI installation. Imports no torch."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genpipe.checkpoints.errors import CheckpointError
from genpipe.messages import listed, quoted

VARIABLE = "GENPIPE_MODELS"  # folders of models, in the environment
SUFFIXES = (".safetensors", ".gguf", ".ckpt")
DEEPEST = 8  # folders within one another

MODEL, LORA, EMBEDDING, VAE, TEXT_ENCODER = "model", "lora", "embedding", "vae", "text encoder"
CONTROL, IP_ADAPTER, IMAGE_ENCODER = "control model", "ip-adapter", "image encoder"
# The options that are found by their names too, and what they are there.
NAMED = {
    "base": MODEL,
    "vae": VAE,
    "text_encoder": TEXT_ENCODER,
    "refiner": MODEL,
    "control_model": CONTROL,
    "ip_adapter": IP_ADAPTER,
    "image_encoder": IMAGE_ENCODER,
}
# Where each kind lies in an installation of A1111 or ComfyUI, in lower case, in the folder `models` of it or beside that.
_PLACES = {
    **dict.fromkeys(("stable-diffusion", "checkpoints", "unet", "diffusion_models"), MODEL),
    **dict.fromkeys(("lora", "loras", "lycoris"), LORA),
    "embeddings": EMBEDDING,
    "vae": VAE,
    **dict.fromkeys(("text_encoder", "text_encoders", "clip"), TEXT_ENCODER),
    **dict.fromkeys(("controlnet", "t2i_adapter"), CONTROL),
    **dict.fromkeys(("ipadapter", "ip-adapter"), IP_ADAPTER),
    "clip_vision": IMAGE_ENCODER,
}


@dataclass(frozen=True)
class Entry:
    """One file, or one folder in the diffusers layout.

    Attributes:
        name: what it is asked for by: the file's name without its ending.
        kind: "model", "lora", "embedding", "vae", …, by the folder that it is in.
        path: where it is.
    """

    name: str
    kind: str
    path: Path


def model_folders(given: str | Path | None = None) -> list[Path]:
    """The folders of models: the given one, or else those that the environment's `GENPIPE_MODELS` lists.

    Raises:
        CheckpointError: the given folder is not there.
    """
    if given is None:
        return [Path(part).expanduser() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"the folder of models {quoted(str(given))} does not exist")
    return [folder]


def entries(folders: Sequence[Path]) -> list[Entry]:
    """All models, LoRAs, … in folders of models and within them, by kind and name; links that lead in circles end."""
    found: dict[Path, Entry] = {}
    for root in folders:
        seen: set[tuple[int, int]] = set()
        for start, kind, depth in _starts(root):
            for path in _walk(start, seen, depth):
                found.setdefault(path, Entry(path.name if path.is_dir() else path.stem, kind, path))
    return sorted(found.values(), key=lambda entry: (entry.kind, entry.name.lower(), str(entry.path)))


def find(name: str, kind: str, folders: Sequence[Path]) -> Path | None:
    """Find a file by its name, with or without its ending and the folders that it is in, in upper or lower case.

    Returns:
        Its path; None if there are no folders, or for a name with a slash, which may be one of the hub, no such file.

    Raises:
        CheckpointError: there is no such file, or there are several.
    """
    if not folders:
        return None
    wanted = name.replace("\\", "/").lower()
    all_of_kind = [entry for entry in entries(folders) if entry.kind == kind]

    def fits(entry: Entry) -> bool:
        path = entry.path.as_posix().lower()
        return f"/{path}".endswith((f"/{wanted}", *(f"/{wanted}{suffix}" for suffix in SUFFIXES)))

    found = [entry for entry in all_of_kind if fits(entry)]
    exact = [entry for entry in found if name in (entry.name, entry.path.name)] or found
    if not found and "/" in wanted:
        return None
    where = listed(map(str, folders))
    if len(exact) > 1:
        raise CheckpointError(
            f"{quoted(name)} is the name of several in {where}: {listed([e.path for e in exact])}: give one"
        )
    if exact:
        return exact[0].path
    near = difflib.get_close_matches(wanted, [entry.name.lower() for entry in all_of_kind], n=3)
    names = [entry.name for entry in all_of_kind if entry.name.lower() in near] or [entry.name for entry in all_of_kind]
    hint = (
        f"did you mean {listed(names, most=3)}?"
        if near
        else f"there are {listed(names)}"
        if names
        else "there are none"
    )
    raise CheckpointError(f"there is no {kind} {quoted(name)} in {where}: {hint}")


def _starts(root: Path) -> list[tuple[Path, str, int]]:
    """The folders to search, what is in them, and how deep: those of an installation, and the folder itself, with models.

    Of an installation, nothing but what lies in the folder itself: other programs are below it.
    """
    known = []
    for folder in (root / "models", root):
        try:
            inside = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError:
            continue
        known += [(path, _PLACES[path.name.lower()], DEEPEST) for path in inside if path.name.lower() in _PLACES]
    return [*known, (root, MODEL, 1 if known else DEEPEST)]


def _walk(folder: Path, seen: set[tuple[int, int]], depth: int) -> Iterator[Path]:
    """Files of weights and folders in the diffusers layout; each real folder once."""
    try:
        stat = folder.stat()
        inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    if (stat.st_dev, stat.st_ino) in seen or not depth:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for entry in inside:
        path = Path(entry.path)
        try:
            if entry.is_dir():
                if (path / "model_index.json").is_file():
                    yield path
                elif not entry.name.startswith("."):
                    yield from _walk(path, seen, depth - 1)
            elif entry.is_file() and path.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
                yield path
        except OSError:  # a link to itself
            continue


def located(path_or_id: str | Path, folder: str | Path | None = None, kind: str = MODEL) -> str | Path:
    """What is given by path, by its name in a folder of models, or by hub id: its path, or else what was given.

    Args:
        path_or_id: a path that exists is taken as it is.
        folder: of models; None is what GENPIPE_MODELS says.
        kind: of the file.

    Raises:
        CheckpointError: the folder is not there, or holds no such file, or several.
    """
    text = str(path_or_id).strip()
    if not text or isinstance(path_or_id, Path) or os.path.exists(os.path.expanduser(text)):
        return path_or_id
    return find(text, kind, model_folders(folder)) or path_or_id
