"""Reading safetensors files into a network: mapped, not copied, and strictly."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.hub import Source, read_json
from genpipe.checkpoints.layout import Layout

Network = TypeVar("Network", bound=nn.Module)

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_POINTER = b"version https://git-lfs"


class _Unfilled(TorchFunctionMode):
    """Skips the initialisation of parameters; on `meta`, drawing one normal number imports sympy, over a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def skeleton(build: Callable[[], Network]) -> Network:
    """The network that `build` makes, with no memory behind its parameters."""
    with torch.device("meta"), _Unfilled():
        return build()


def find_weights(source: Source, layout: Layout, variant: str | None) -> list[Path] | None:
    """The safetensors files of one network, several where an index lists shards; None if there are none."""
    suffix = f".{variant}" if variant else ""
    single = source.find(f"{layout.folder}/{layout.stem}{suffix}.safetensors")
    if single is not None:
        return [single]
    index = f"{layout.folder}/{layout.stem}.safetensors.index{suffix}.json"
    if source.find(index) is None:
        return None
    names = read_json(source, index, lambda content: sorted({str(shard) for shard in content["weight_map"].values()}))
    paths = []
    for name in names:
        path = source.find(f"{layout.folder}/{name}") if Path(name).name == name else None
        if path is None:
            raise CheckpointError(f"{source}/{index} lists {name}, which is not there")
        paths.append(path)
    return paths or None


def explain_missing(source: Source, layout: Layout) -> CheckpointError:
    """Why `find_weights` found nothing: there are only pickle files, only variants, or no files at all."""
    names = source.listing(layout.folder)
    variants = [
        m[1] for name in names if (m := re.fullmatch(layout.stem + r"\.(\w+)(-\d+-of-\d+)?\.safetensors", name))
    ]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if variants:
        return CheckpointError(f"{source}/{layout.folder} holds only the variant {variants[0]!r}: pass it as `variant`")
    if pickles:
        return CheckpointError(
            f"{source}/{layout.folder} holds only pickle files ({', '.join(pickles)}), which genpipe does not load since "
            "they can run code: open the checkpoint with diffusers and save it with save_pretrained, which writes safetensors"
        )
    return CheckpointError(f"{source} lacks the weights {layout.folder}/{layout.stem}.safetensors")


def read_weights(
    network: nn.Module, layout: Layout, files: Sequence[Path], *, device: torch.device | str, dtype: torch.dtype | None
) -> None:
    """Put the tensors of `files` in place of the parameters of `network`, which may have no memory of their own.

    On the CPU and at the files' own dtype the parameters are the mapped files: nothing is copied, and pages are read
    when they are first used. Otherwise tensors are converted one by one.

    Args:
        network: as its config says, on any device.
        layout: what the files call its tensors.
        files: one file, or all shards.
        device: where the parameters are to be.
        dtype: their type; None keeps the files' own.

    Raises:
        CheckpointError: a file is corrupt, or tensors are missing, unexpected or of the wrong shape: names them all.
    """
    where = files[0] if len(files) == 1 else files[0].parent
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found: set[str] = set()
    unexpected, wrong = [], []
    for path in files:
        with _opened(path) as file:
            keys = file.keys()
            for key in keys:
                if key in layout.harmless:
                    continue
                name, part = layout.ours(key), file.get_slice(key)
                shape = tuple(part.get_shape())
                if name not in wanted or name in found:
                    unexpected.append(key)
                    continue
                found.add(name)
                if part.get_dtype() not in _DTYPES:
                    wrong.append(f"{key} is stored as {part.get_dtype()}")
                elif shape != wanted[name] and not (layout.is_alias(key) and shape == (*wanted[name], 1, 1)):
                    wrong.append(f"{key} is {shape}, not {wanted[name]}")
    missing = [layout.theirs(name) for name in wanted if name not in found]
    problems = [
        f"{title}: {', '.join(keys)}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{where} does not fit its config.json; {'; '.join(problems)}")

    state = {}
    for path in files:
        for key, tensor in _mapped(path):
            name = layout.ours(key)
            if name is not None:
                # Legacy attention may be stored as 1×1 convolutions.
                state[name] = tensor.reshape(wanted[name]).to(device=device, dtype=dtype)
    network.load_state_dict(state, strict=True, assign=True)


def _mapped(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file that has been found sound, each mapped on its own: one that is let go frees its pages.

    safetensors maps a file as a whole, so that what was converted stays in memory until the last tensor is.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for key, entry in header.items():
        if key == "__metadata__" or entry["dtype"] not in _DTYPES:
            continue
        start, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if start == end:
            yield key, torch.empty(entry["shape"], dtype=dtype)
            continue
        # Written to only in memory: "c" is a private mapping.
        offset = 8 + length + start
        tensor = torch.from_numpy(np.memmap(path, np.uint8, "c", offset=offset, shape=(end - start,)))
        tensor = tensor.clone() if offset % dtype.itemsize else tensor  # where a writer has not aligned it
        yield key, tensor.view(dtype).reshape(entry["shape"])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        with path.open("rb") as start:
            pointer = start.read(len(_POINTER)) == _POINTER
        reason = "it is a Git LFS pointer, run `git lfs pull`" if pointer else error
        raise CheckpointError(f"{path} is truncated or corrupt: {reason}") from error
