"""LoRA and its kin as patches of weights: the files of kohya's scripts, of diffusers and of LyCORIS."""

import json
import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genpipe.checkpoints import lora_formulas
from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import FAMILIES, SD1, SD2, SDXL, Family
from genpipe.checkpoints.lora_names import Modules, split
from genpipe.checkpoints.recognition import LORA, describe, kind_of
from genpipe.checkpoints.tensors import TensorFile, open_tensors, shapes_of
from genpipe.messages import listed, quoted

MAX_STRENGTH = 100.0
# Textual inversions that ride along, which the reader of embeddings takes.
_BUNDLED = "bundle_emb."
# Kin of LoRA that few files hold, by what one of their tensors' names ends in.
_UNAPPLIED = {"OFT": r"\.oft_(blocks|diag)$", "IA³": r"\.on_input$", "GLoRA": r"\.[ab][12]\.weight$"}
_TRANSFORMER = re.compile(
    r".*(double_blocks|single_blocks|joint_blocks|single_transformer_blocks|transformer_blocks_\d+_attn_).*"
)
_BASES = {"sd_v1": SD1, "sd_1": SD1, "sd_v2": SD2, "sd_2": SD2, "sdxl": SDXL}


@dataclass(frozen=True)
class _Change:
    """The change of one weight: its formula, the file's tensors by what they are, and alpha / r."""

    form: str
    keys: Mapping[str, str]
    scale: float


def _strength(name: str, strength: float, text_strength: float) -> float:
    """The strength that goes for a weight."""
    return strength if name.startswith("unet.") else text_strength


@dataclass(frozen=True, eq=False)
class LoRA:
    """A patch of weights (see `Patch`); equal to another of the same file at the same strengths.

    Attributes:
        path: of the file.
        strength: of the change of the U-Net; 1 is as it was trained.
        text_strength: of the change of the text encoders.
        changes: what is done to each weight, by its full name of ours.
    """

    path: Path
    strength: float
    text_strength: float
    changes: Mapping[str, _Change]
    file: TensorFile
    version: tuple[int, int]

    @property
    def names(self) -> AbstractSet[str]:
        """The weights that it changes."""
        return self.changes.keys()

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The weight `name`, in fp32 -> the same, changed.

        Raises:
            CheckpointError: the file's tensors are not finite.
        """
        change = self.changes[name]
        tensors = {}
        for kind, key in change.keys.items():
            tensors[kind] = self.file.tensor(key).float()
            if not bool(tensors[kind].isfinite().all()):
                raise CheckpointError(f"{self.path}: the tensor {key} is not finite")
        return lora_formulas.changed(
            change.form,
            tensors,
            tensor,
            scale=change.scale,
            strength=_strength(name, self.strength, self.text_strength),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoRA) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return (self.path.resolve(), self.version, self.strength, self.text_strength)


def load_lora(
    path: str | Path,
    checkpoint: Checkpoint,
    strength: float = 1.0,
    *,
    text_strength: float | None = None,
    allow_pickle: bool = False,
) -> LoRA:
    """Read a LoRA, LoCon, LoHa, LoKr or DoRA, or full differences, for a checkpoint.

    Args:
        path: a safetensors file; or with `allow_pickle` a pickle.
        checkpoint: whose weights it is to change; `repatched` does so.
        strength: of the change, -100 … 100; 1 is as it was trained, 0 none.
        text_strength: of the text encoders' change; None is `strength`.

    Raises:
        CheckpointError: the file is not there, corrupt or no LoRA, of another family, or holds tensors that fit nothing in
            the checkpoint: names them.
        ValueError: a strength is out of its range.
    """
    path = Path(path).expanduser()
    text_strength = strength if text_strength is None else text_strength
    for value in (strength, text_strength):
        if not (isinstance(value, int | float) and math.isfinite(value) and abs(value) <= MAX_STRENGTH):
            raise ValueError(
                f"the strength {quoted(value)} of {path} is out of range: -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
            )
    if not path.is_file():
        raise CheckpointError(f"the LoRA {path} does not exist")
    file = open_tensors(path, allow_pickle=allow_pickle)
    shapes = shapes_of(file)
    if kind_of(shapes) != LORA:
        raise CheckpointError(f"{path} is {describe(kind_of(shapes))}, not a LoRA")
    modules, unknown = _grouped(shapes, Modules(checkpoint))
    family, own = lora_family(file), checkpoint.family
    problem = f"no module of {own.title} takes {listed(unknown)}" if unknown else None
    if other := next((form for form, end in _UNAPPLIED.items() for key in unknown if re.search(end, key)), None):
        problem = f"{problem}: it is {other}, which genpipe does not apply"
    changes: dict[str, _Change] = {}
    wanted = {f"{part}.{name}": shape for part, of in checkpoint.shapes.items() for name, shape in of.items()}
    for module, keys in modules.items():
        try:
            changes |= _changes(module, keys, file, wanted)
        except ValueError as error:
            problem = problem or f"{next(iter(keys.values()))}: {error}"
    if problem and family is not None and family.name != own.name:
        raise CheckpointError(f"{path} is a LoRA for {family.title}, and {checkpoint.source} is {own.title}")
    if problem and any(_TRANSFORMER.fullmatch(key) for key in unknown):
        raise CheckpointError(
            f"{path} is a LoRA for a transformer (FLUX or another), and {checkpoint.source} is {own.title}"
        )
    if problem:
        raise CheckpointError(f"{path} does not fit {checkpoint.source}: {problem}")
    kept = {name: change for name, change in changes.items() if _strength(name, strength, text_strength)}
    stat = path.stat()
    return LoRA(path, float(strength), float(text_strength), kept, file, (stat.st_size, stat.st_mtime_ns))


def lora_family(file: TensorFile) -> Family | None:
    """The family that a LoRA was made for, by the widths of what it reads, or else by its metadata; None if unknown."""
    encoders: dict[str, int] = {}
    for key, entry in file.entries.items():
        named = split(key)
        if named is None or named.kind not in ("down", "hada_w1_b") or len(entry.shape) < 2:
            continue
        module = named.module.replace(".", "_")
        if re.search(r"attn2_(processor_)?to_[kv]$", module):
            return next((family for family in FAMILIES if family.context_channels == entry.shape[1]), None)
        if match := re.match(r"(lora_te\d?|text_encoder(_2)?)_.*(self_attn_(q_proj|to_q)|mlp_fc1)$", module):
            encoders[match[1]] = entry.shape[1]
    if "lora_te2" in encoders or "lora_te1" in encoders or "text_encoder_2" in encoders:
        return SDXL
    widths = {SD1.context_channels: SD1, SD2.context_channels: SD2}
    if encoders:
        return next((widths[width] for width in encoders.values() if width in widths), None)
    stated = file.metadata.get("ss_base_model_version", "").lower()
    return next((family for start, family in _BASES.items() if stated.startswith(start)), None)


def _grouped(shapes: Mapping[str, Any], names: Modules) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The file's tensors by our module and by what they are, and those that fit nothing."""
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for key in shapes:
        if key.startswith(_BUNDLED):
            continue
        named = split(key)
        module = None if named is None else names.find(named.module)
        if named is None or module is None or named.kind in modules.get(module, {}):
            unknown.append(key)
        else:
            modules.setdefault(module, {})[named.kind] = key
    return modules, unknown


def _changes(
    module: str, keys: Mapping[str, str], file: TensorFile, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, _Change]:
    """The changes of a module's weight and bias.

    Raises:
        ValueError: the tensors do not go together, or do not fit the weight.
    """
    for key in keys.values():
        if not file.entries[key].readable:
            raise ValueError(f"it is stored as {file.entries[key].dtype}")
    of_weight = {kind: key for kind, key in keys.items() if kind != "diff_b"}
    parts = {"weight": of_weight} if of_weight else {}
    if "diff_b" in keys:
        parts["bias"] = {"diff": keys["diff_b"]}
    found = {}
    for part, tensors in parts.items():
        name = f"{module}.{part}"
        if name not in wanted:
            raise ValueError(f"the model has no {part} there")
        shapes = {kind: file.entries[key].shape for kind, key in tensors.items()}
        form = lora_formulas.form_of(shapes)
        rank = lora_formulas.rank_of(form, shapes)
        if rank == 0:
            raise ValueError("its rank is 0")
        scale = 1.0 if rank is None else _alpha(file, module, tensors, rank) / rank
        kept = {kind: key for kind, key in tensors.items() if kind != "alpha"}
        lora_formulas.check(form, {kind: shapes[kind] for kind in kept}, wanted[name])
        found[name] = _Change(form, kept, scale)
    return found


def _alpha(file: TensorFile, module: str, tensors: Mapping[str, str], rank: int) -> float:
    """Alpha: a tensor of the module's, or of the adapter's metadata; the rank where neither says, or says 0."""
    if "alpha" in tensors:
        stored = file.tensor(tensors["alpha"]).float()
        if stored.numel() != 1:
            raise ValueError(f"its alpha is of shape {tuple(stored.shape)}")
        alpha = float(stored)
    else:
        alpha = _stated_alpha(file, module, next(iter(tensors.values())), rank)
    if not math.isfinite(alpha):
        raise ValueError(f"its alpha is {alpha}")
    return alpha or float(rank)


def _stated_alpha(file: TensorFile, module: str, key: str, rank: int) -> float:
    """The alpha of PEFT's configuration in the metadata of diffusers' files, which has one per network."""
    try:
        config = json.loads(file.metadata.get("lora_adapter_metadata") or "{}")
        part = module.partition(".")[0]
        alpha = config.get(f"{part}.lora_alpha", rank)
        for pattern, value in config.get(f"{part}.alpha_pattern", {}).items():
            if key.partition(".lora")[0].endswith(f".{pattern}"):
                alpha = value
        return float(alpha) * (math.sqrt(rank) if config.get(f"{part}.use_rslora") else 1.0)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the file's lora_adapter_metadata cannot be used: {error}") from error
