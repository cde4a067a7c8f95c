"""Textual inversions: vectors that stand for a word in a prompt, from files of A1111, diffusers and ComfyUI.

"An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion" (arXiv 2208.01618).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import FAMILIES
from genpipe.checkpoints.recognition import EMBEDDING, LORA, describe, kind_of
from genpipe.checkpoints.tensors import PICKLES, TensorFile, open_tensors, shapes_of

# The vectors of one word: (n, width) for each text encoder, in joining order.
Vectors = tuple[Tensor, ...]

MOST = 75  # vectors of one word: all the room that a prompt has
_BUNDLED = "bundle_emb."
# Of a text encoder's vectors where a file names it; else its width tells.
_ENCODERS = ("clip_l", "clip_g")


def load_embeddings(
    paths: Sequence[str | Path], checkpoint: Checkpoint, *, allow_pickle: bool = False
) -> dict[str, Vectors]:
    """Read textual inversions for a checkpoint.

    Args:
        paths: files, or folders of them; those in folders that are for another family are left out, and
            those that cannot be read with a warning.
        checkpoint: whose text encoders' widths the vectors must have.
        allow_pickle: read `.pt` and `.bin` files too: their tensors alone, by torch's reader that runs no code.

    Returns:
        The vectors by word in lower case: the file's name without its ending, and the token in it if it names one. A word of
        a later file replaces that of an earlier one.

    Raises:
        CheckpointError: a path is not there; a file that is given by itself is no textual inversion, or not for this family.
    """
    widths = [encoder.config.hidden_size for encoder in checkpoint.text_encoders]
    found: dict[str, Vectors] = {}
    for path in map(Path, paths):
        path = path.expanduser()
        if path.is_dir():
            found |= _in_folder(path, widths, allow_pickle)
            continue
        if not path.is_file():
            raise CheckpointError(f"the textual inversion {path} does not exist")
        file = open_tensors(path, allow_pickle=allow_pickle)
        read = _read(file)
        if not read:
            raise CheckpointError(f"{path} is {describe(kind_of(shapes_of(file)))}, not a textual inversion")
        for word, tensors in read.items():
            vectors = _fitted(tensors, widths)
            if vectors is None:
                raise CheckpointError(
                    f"{path} {_misfit(tensors)}, and {checkpoint.source} is {checkpoint.family.title}"
                )
            found[word] = vectors
    return found


def _in_folder(folder: Path, widths: Sequence[int], allow_pickle: bool) -> dict[str, Vectors]:
    """The words of a folder's files that fit; a file that cannot be read is named in a warning."""
    endings = (".safetensors", *PICKLES) if allow_pickle else (".safetensors",)
    found: dict[str, Vectors] = {}
    for path in sorted(each for each in folder.iterdir() if each.suffix.lower() in endings and each.is_file()):
        try:
            read = _read(open_tensors(path, allow_pickle=allow_pickle))
        except CheckpointError as error:
            warnings.warn(f"left out of the textual inversions: {error}", stacklevel=4)
            continue
        fitted = {word: _fitted(tensors, widths) for word, tensors in read.items()}
        found |= {word: vectors for word, vectors in fitted.items() if vectors is not None}
    return found


def _read(file: TensorFile) -> dict[str, list[Tensor]]:
    """The tensors of each word in a file: several where it is for two text encoders; {} if it is no textual inversion.

    Raises:
        CheckpointError: tensors are not finite, or not vectors.
    """
    stem = file.path.stem.lower()
    kind = kind_of(shapes_of(file))
    words: dict[str, list[str]] = {}
    if kind == EMBEDDING:
        keys = [key for key in file.entries if not key.startswith("string_to_token")]
        words[stem] = sorted(keys, key=lambda key: _ENCODERS.index(key) if key in _ENCODERS else -1)
        if len(keys) == 1 and keys[0] not in _ENCODERS and not keys[0].startswith(("emb_params", "string_to_param")):
            words[keys[0].lower()] = keys
    elif kind == LORA:  # in which they ride along
        for key in file.entries:
            if key.startswith(_BUNDLED):
                words.setdefault(key.split(".")[1].lower(), []).append(key)
        words = {word: sorted(keys, key=lambda key: key.endswith("clip_g")) for word, keys in words.items()}
    return {word: [_vectors(file, key) for key in keys] for word, keys in words.items()}


def _vectors(file: TensorFile, key: str) -> Tensor:
    entry = file.entries[key]
    if not entry.readable or len(entry.shape) not in (1, 2) or 0 in entry.shape:
        raise CheckpointError(
            f"{file.path}: {key} of shape {entry.shape} and type {entry.dtype} is no vectors of a word"
        )
    vectors = torch.atleast_2d(file.tensor(key).float().clone())  # (n, width)
    if len(vectors) > MOST:
        raise CheckpointError(f"{file.path}: {len(vectors)} vectors are more than the {MOST} tokens of a prompt")
    if not bool(vectors.isfinite().all()):
        raise CheckpointError(f"{file.path}: {key} is not finite")
    return vectors


def _fitted(tensors: Sequence[Tensor], widths: Sequence[int]) -> Vectors | None:
    """The vectors of each text encoder; None if they are not of its width, or not as many for all."""
    if [tensor.shape[1] for tensor in tensors] != list(widths) or len({len(tensor) for tensor in tensors}) != 1:
        return None
    return tuple(tensors)


def _misfit(tensors: Sequence[Tensor]) -> str:
    """What the vectors are for: "is a textual inversion for Stable Diffusion 2.x (vectors of 1024)"."""
    widths = [tensor.shape[1] for tensor in tensors]
    title = next((family.title for family in FAMILIES if family.context_channels == sum(widths)), "another model")
    numbers = {len(tensor) for tensor in tensors}
    if len(numbers) > 1:
        return f"has {' and '.join(map(str, sorted(numbers)))} vectors for its text encoders, which do not go together"
    return f"is a textual inversion for {title} (vectors of {' and '.join(map(str, widths))})"
