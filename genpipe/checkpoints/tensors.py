"""Tensors by name in a file of weights, mapped from it: nothing is read until it is used, and no code is ever run."""

import importlib
import json
import math
import mmap
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.gguf_header import Header
from genpipe.messages import one_line

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
QUANTISED = ".gguf"
# GGUF's types that are safetensors' too; others are blocks of few bits.
_UNPACKED = {"F64", "F32", "F16", "BF16"}
# What a file that is no safetensors begins with -> what it is.
_OTHERS = {
    b"version https://git-lfs": "it is a Git LFS pointer, run `git lfs pull`",
    **dict.fromkeys(
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "it is a pickle file (.ckpt) under a wrong name",
    ),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"RIFF"), "it is an image"),
    b"GGUF": "it is a GGUF file under a wrong name",
    b"<": "it is a web page, not weights: download it again",
    b'{"': "it is JSON text, not weights: download it again",
}
# What tensors are mapped from, by the address of their first byte.
_MAPPED: WeakValueDictionary[int, np.memmap] = WeakValueDictionary()


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        shape: its shape.
        dtype: its type as the safetensors format calls it ("F16"), or as GGUF does ("Q8_0").
        blocks: whether it is stored in blocks of few bits, which `TensorFile.tensor` widens.
    """

    shape: tuple[int, ...]
    dtype: str
    blocks: bool = False

    @property
    def readable(self) -> bool:
        """Whether a network's weight may be stored so."""
        return self.blocks or self.dtype in DTYPES


class TensorFile(Protocol):
    """A file of tensors.

    Attributes:
        path: of the file.
        entries: every tensor by its name, in the file's order.
        metadata: what the file says of itself.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def tensor(self, key: str, third: int | None = None) -> Tensor:
        """The tensor of that name; or of its rows the first, second or third third (0, 1, 2)."""
        ...


class Safetensors:
    """A safetensors file, each of whose tensors is mapped on its own: one that is let go frees its pages.

    The library would map the file as a whole, so that what was converted stays in memory until the last tensor is.

    Raises:
        CheckpointError: the file is truncated, corrupt, or something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        self.entries: Mapping[str, Entry] = {
            key: Entry(tuple(value["shape"]), value["dtype"]) for key, value in header.items()
        }
        self._ends = {key: value["data_offsets"] for key, value in header.items()}
        self._start = 8 + length

    def tensor(self, key: str, third: int | None = None) -> Tensor:
        """The tensor of that name; or of its rows the first, second or third third (0, 1, 2)."""
        entry, (start, end) = self.entries[key], self._ends[key]
        dtype, shape = DTYPES[entry.dtype], entry.shape
        if third is not None:
            size = (end - start) // 3
            start, end, shape = start + third * size, start + (third + 1) * size, (shape[0] // 3, *shape[1:])
        if start == end:
            return torch.empty(shape, dtype=dtype)
        # Written to only in memory: "c" is a private mapping. By a text, as numpy would resolve a `Path` each time.
        offset = self._start + start
        mapped = np.memmap(str(self.path), np.uint8, "c", offset=offset, shape=(end - start,))
        tensor = torch.from_numpy(mapped)
        _MAPPED[tensor.data_ptr()] = mapped
        tensor = tensor.clone() if offset % dtype.itemsize else tensor  # where a writer has not aligned it
        return tensor.view(dtype).reshape(shape)


class Pickled:
    """A pickle file of tensors, read by `torch.load(weights_only=True)`, which runs no code, and mapped where it can be.

    What lies around the tensors (`state_dict`, counters of steps, optimisers) is left aside.

    Raises:
        CheckpointError: it is corrupt, or holds objects that only running its code could build.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        found = _unpickled(path)
        while isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
            found = found["state_dict"]
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{path} holds a {type(found).__name__}, not tensors by name")
        inner = {
            f"{key}.{name}": value for key, of in found.items() if isinstance(of, Mapping) for name, value in of.items()
        }
        self._tensors = {str(key): value for key, value in {**found, **inner}.items() if isinstance(value, Tensor)}
        names = {dtype: name for name, dtype in DTYPES.items()}
        self.entries: Mapping[str, Entry] = {
            key: Entry(tuple(value.shape), names.get(value.dtype, str(value.dtype).removeprefix("torch.")))
            for key, value in self._tensors.items()
        }

    def tensor(self, key: str, third: int | None = None) -> Tensor:
        """The tensor of that name; or of its rows the first, second or third third (0, 1, 2)."""
        tensor = self._tensors[key].detach().contiguous()
        return tensor if third is None else tensor.chunk(3)[third].clone()


class Gguf:
    """A GGUF file, each of whose tensors is mapped on its own. What is stored in blocks (Q8_0, Q4_K, …) is read as fp16.

    Raises:
        CheckpointError: the file is truncated or corrupt, is in a form that the gguf package does not read, or the package
            is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._gguf = importlib.import_module("gguf")
        except ImportError:
            raise CheckpointError(
                f"{path} is a GGUF file, which takes the gguf package: pip install 'genpipe[gguf]'"
            ) from None
        try:
            header = Header(path, self._gguf.GGML_QUANT_SIZES)
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is truncated or corrupt: {one_line(str(error), 200)}") from error
        self.metadata: Mapping[str, str] = {n: value for n, value in header.fields.items() if isinstance(value, str)}
        self._places = header.places
        entries: dict[str, Entry] = {}
        for name, place in header.places.items():
            # A convolution's kernels make no rows of whole blocks: they are stored in another shape, and their own is noted.
            noted = header.fields.get(f"comfy.gguf.orig_shape.{name}", place.shape)
            shape = tuple(side for side in noted if isinstance(side, int)) if isinstance(noted, list | tuple) else ()
            if math.prod(shape) != math.prod(place.shape):
                raise CheckpointError(f"{path} is truncated or corrupt: {name} of {place.shape} is to be {noted!r:.80}")
            kind = self._gguf.GGMLQuantizationType(place.kind).name
            entries[name] = Entry(shape, kind, blocks=kind not in _UNPACKED)
        self.entries: Mapping[str, Entry] = entries

    def tensor(self, key: str, third: int | None = None) -> Tensor:
        """The tensor of that name; or of its rows the first, second or third third (0, 1, 2)."""
        place, entry = self._places[key], self.entries[key]
        if not place.size:
            return torch.empty(entry.shape, dtype=torch.float16)
        data = np.memmap(str(self.path), np.uint8, "c", offset=place.start, shape=(place.size,))
        if entry.blocks:
            rows = data.reshape(math.prod(place.shape[:-1]), -1)  # some of them are widened at a time
            try:
                wide = self._gguf.dequantize(rows, self._gguf.GGMLQuantizationType(place.kind))
            except NotImplementedError:
                raise CheckpointError(f"{self.path}: {key} is stored as {entry.dtype}, which cannot be read") from None
            tensor = torch.from_numpy(wide).to(torch.float16)
        else:
            tensor = torch.from_numpy(data).view(DTYPES[entry.dtype])
        tensor = tensor.reshape(entry.shape)
        return tensor if third is None else tensor.chunk(3)[third].clone()


def _unpickled(path: Path) -> Any:
    """What a pickle file holds. Files from before torch 1.6 cannot be mapped, and are read whole."""
    reason: Exception | None = None
    for lazily in (True, False):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist") from error
        except Exception as error:  # noqa: BLE001 - of a malformed pickle, anything
            reason = error
    first = str(reason).strip().partition("\n")[0] or type(reason).__name__
    if "weights_only" in str(reason) or "Unsupported" in str(reason) or "Weights only" in str(reason):
        raise CheckpointError(
            f"{path} holds Python objects that only running its code could build, which genpipe does not do: "
            "save its tensors as safetensors with the program that wrote it"
        ) from reason
    why = first if path.stat().st_size else "it is empty"
    raise CheckpointError(f"{path} is truncated or corrupt: {why}") from reason


def _check(path: Path) -> None:
    """Check that all the tensors that the file's header names are in the file."""
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        reason = "it is empty"
    for mark, what in _OTHERS.items():
        if start.startswith(mark):
            reason = what
    raise CheckpointError(f"{path} is truncated or corrupt: {reason}")


def open_tensors(path: Path, *, allow_pickle: bool = False) -> TensorFile:
    """Open a file of weights.

    Args:
        path: a safetensors file; a `.gguf`; or a `.ckpt`, `.pt`, `.pth` or `.bin`, all of which are pickles.
        allow_pickle: whether tensors may be read from a pickle, by torch's reader that runs no code.

    Raises:
        CheckpointError: the file is truncated, corrupt, something else, or a pickle that is not allowed.
    """
    if path.suffix.lower() == QUANTISED:
        return Gguf(path)
    if path.suffix.lower() not in PICKLES:
        return Safetensors(path)
    if not allow_pickle:
        raise CheckpointError(
            f"{path} is a pickle file, which can run code when it is read carelessly: pass allow_pickle=True "
            "(--allow-pickle) to read its tensors alone, or save it as safetensors"
        )
    return Pickled(path)


def release_pages(tensors: Iterable[Tensor]) -> None:
    """Take the pages of tensors that are mapped from safetensors files out of this process's memory.

    The system keeps them in its cache of files while it has memory to spare, and maps them again when they are used. What
    was written to such a tensor is lost; other tensors are left as they are.
    """
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            continue
        mapped = _MAPPED.get(tensor.untyped_storage().data_ptr())
        pages = getattr(mapped, "_mmap", None)
        if pages is not None and hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED)


def shapes_of(file: TensorFile) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors."""
    return {key: entry.shape for key, entry in file.entries.items()}


_SCALES = ("scale_weight", "weight_scale")
_COMPANION = re.compile(r"(.+)\.(scale_weight|weight_scale|scale_input|input_scale)")


def scales(file: TensorFile) -> dict[str, str]:
    """For each weight that is stored in fp8 with a scale, the scale's name: the weight is their product."""
    matches = (_COMPANION.fullmatch(key) for key in file.entries)
    return {f"{match[1]}.weight": match[0] for match in matches if match and match[2] in _SCALES}


def is_companion(file: TensorFile, key: str) -> bool:
    """Whether a tensor only says how others are stored in fp8."""
    match = _COMPANION.fullmatch(key)
    return key.rpartition(".")[2] == "scaled_fp8" or (match is not None and f"{match[1]}.weight" in file.entries)
