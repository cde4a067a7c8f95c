"""Reading safetensors files into a network: mapped, not copied, and strictly."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.layout import Layout
from genpipe.checkpoints.patches import Patch
from genpipe.checkpoints.source import Source, read_json
from genpipe.checkpoints.tensors import PICKLES, TensorFile, is_companion, scales
from genpipe.messages import listed, quoted
from genpipe.models.stored import StoredLayer, can_store

Network = TypeVar("Network", bound=nn.Module)


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
            raise CheckpointError(f"{source}/{index} lists {quoted(name)}, which is not there")
        paths.append(path)
    return paths or None


def weights_in(source: Source, layout: Layout, variant: str | None = None) -> tuple[Path, ...]:
    """The safetensors files of one network: of the variant, or where it has none, the plain ones.

    Raises:
        CheckpointError: there are none; says what there is instead.
    """
    files = (variant and find_weights(source, layout, variant)) or find_weights(source, layout, None)
    if not files:
        raise _missing(source, layout)
    return tuple(files)


def _missing(source: Source, layout: Layout) -> CheckpointError:
    """Why there are no files: there are only pickle files, only variants, or no files at all."""
    names = source.listing(layout.folder)
    variants = [
        m[1] for name in names if (m := re.fullmatch(layout.stem + r"\.(\w+)(-\d+-of-\d+)?\.safetensors", name))
    ]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if variants:
        return CheckpointError(
            f"{source}/{layout.folder} holds only the variant {quoted(variants[0])}: pass it as `variant`"
        )
    if pickles:
        return CheckpointError(
            f"{source}/{layout.folder} holds only pickle files ({listed(pickles)}), which genpipe does not load since "
            "they can run code: open the checkpoint with diffusers and save it with save_pretrained, which writes safetensors"
        )
    return CheckpointError(source.lacks(f"the weights {layout.folder}/{layout.stem}.safetensors"))


def read_weights(
    network: nn.Module,
    names: Layout,
    files: Sequence[TensorFile],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    patches: Sequence[Patch] = (),
    store: torch.dtype | None = None,
) -> None:
    """Put the tensors of `files` in place of the parameters of `network`, which may have no memory of their own.

    On the CPU and at the files' own dtype the parameters are the mapped files: nothing is copied, and pages are read
    when they are first used. Otherwise tensors are converted one by one. Weights in fp8 are widened to fp16.

    Args:
        network: as its config says, on any device.
        names: what the files call its tensors.
        files: one file, or all shards.
        device: where the parameters are to be.
        dtype: their type; None keeps the files' own.
        patches: applied one after the other, in fp32, before a tensor goes back to the type that it is stored in.
        store: keep the weights of a U-Net's layers in this type, as `StoredLayer`s; each is made of its layer as soon as
            that is read, so that the network is never in memory in a wider type.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape: names them all.
    """
    Weights(network, names, files, patches=patches, store=store).fill(network, device=device, dtype=dtype)


class Weights:
    """The tensors of a network's parameters, checked to be all that it has, each read from its file when it is asked for.

    Args, errors: as of `read_weights`.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Layout,
        files: Sequence[TensorFile],
        *,
        patches: Sequence[Patch] = (),
        store: torch.dtype | None = None,
    ) -> None:
        self._folder, self._patches, self._store = names.folder, patches, store
        self._shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        self._places = _found(self._shapes, names, files)
        self._leaves: dict[str, list[str]] = {}
        for name in self._shapes:
            path, _, leaf = name.rpartition(".")
            self._leaves.setdefault(path, []).append(leaf)
        # Weak, so that what a layer is replaced by does not keep the layer's weights.
        self._paths = WeakKeyDictionary({module: path for path, module in network.named_modules()})

    def path(self, module: nn.Module) -> str | None:
        """Where a part of the network is in it; None of one that has been read."""
        return self._paths.get(module)

    def fill(
        self,
        module: nn.Module,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        wide: bool = False,
    ) -> nn.Module:
        """Read the parameters of the network, or of a part of it that has not been read yet.

        Args:
            module: the network or a part of it; its layers are filled, or replaced where they are stored otherwise.
            device, dtype: as of `read_weights`.
            wide: leave what patches change in fp32, for who converts it anyway.

        Returns:
            The part: itself, or what has taken its place.
        """
        parts = list(module.named_modules())[::-1]
        while parts:  # none is held here after its turn: what it is replaced by is all that stays
            name, part = parts.pop()
            path = self._paths.pop(part, None)
            if path is None or path not in self._leaves:
                continue
            tensors = {
                leaf: self._read(f"{path}.{leaf}" if path else leaf, wide).to(device=device, dtype=dtype)
                for leaf in self._leaves[path]
            }
            part.load_state_dict(tensors, strict=True, assign=True)
            if self._store is not None and can_store(path, part):
                stored = StoredLayer(cast(nn.Linear | nn.Conv2d, part), self._store)
                if part is module:
                    return stored
                parent, _, child = name.rpartition(".")
                module.get_submodule(parent).register_module(child, stored)
        return module

    def _read(self, name: str, wide: bool) -> Tensor:
        tensor = self._places[name].read(self._shapes[name])
        full = f"{self._folder}.{name}"
        changes = [patch for patch in self._patches if full in patch.names]
        if not changes:
            return tensor
        changed = tensor.to(torch.float32, copy=True)
        for patch in changes:
            changed = patch(full, changed)
        return changed if wide else changed.to(tensor.dtype)


def _found(wanted: Mapping[str, tuple[int, ...]], names: Layout, files: Sequence[TensorFile]) -> dict[str, "_Place"]:
    """Where the files have each tensor that is wanted.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape.
    """
    where = files[0].path if len(files) == 1 else files[0].path.parent
    found: dict[str, _Place] = {}
    unexpected, wrong = [], []
    for file in files:
        factors = scales(file)
        for key, entry in sorted(file.entries.items()):
            if not key.startswith(names.prefix) or names.is_harmless(key) or is_companion(file, key):
                continue
            held = names.all_ours(key)
            if not held or any(name not in wanted or name in found for name, _ in held):
                unexpected.append(key)
                continue
            held = [(name, "#C" if names.is_alias(key) else mark) for name, mark in held]
            found |= {name: _Place(file, key, mark, factors.get(key)) for name, mark in held}
            allowed = [_stored_shape(wanted[name], mark) for name, mark in held]
            if not entry.readable:
                wrong.append(f"{key} is stored as {entry.dtype}")
            elif any(entry.shape not in shapes for shapes in allowed):
                wrong.append(f"{key} is {entry.shape}, not {allowed[0][0]}")
    absent = (names.theirs(name).partition("#")[0] for name in wanted if name not in found)
    missing = list(dict.fromkeys(absent))
    problems = [
        f"{title}: {listed(keys)}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{where} does not fit its config.json; {'; '.join(problems)}")
    return found


@dataclass(frozen=True)
class _Place:
    """Where one of our tensors is: in a file, under a name, by a mark (see `layout`), in fp8 perhaps with a scale."""

    file: TensorFile
    key: str
    mark: str
    scale: str | None

    def read(self, shape: tuple[int, ...]) -> Tensor:
        third = int(self.mark[1:]) if self.mark[1:].isdigit() else None
        tensor = self.file.tensor(self.key, third)
        if self.mark == "#T":
            tensor = tensor.T.contiguous()
        if self.scale is not None:
            scale = self.file.tensor(self.scale).float()  # one number, or one per row
            scale = scale.reshape(-1, *[1] * (tensor.ndim - 1)) if scale.numel() > 1 else scale.reshape(())
            return (tensor.float() * scale).to(torch.float16).reshape(shape)
        if tensor.dtype.itemsize == 1:
            tensor = tensor.to(torch.float16)  # which holds every number of either fp8
        return tensor.reshape(shape)


def _stored_shape(shape: tuple[int, ...], mark: str) -> list[tuple[int, ...]]:
    """The shapes that a file's tensor may have which holds one of ours of that shape."""
    if mark == "#T":
        return [shape[::-1]]
    if mark == "#C":
        return [(*shape, 1, 1), shape] if len(shape) == 2 else [shape]
    return [(3 * shape[0], *shape[1:])] if mark else [shape]
