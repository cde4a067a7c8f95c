"""What a file or a folder of weights is, for people: its family, its parts, its hashes, and what it says of itself."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from genpipe.checkpoints.diffusers_layout import folder_parts
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import FAMILIES
from genpipe.checkpoints.fingerprint import data_sha256, file_sha256
from genpipe.checkpoints.foreign import INDEX, Foreign, foreign
from genpipe.checkpoints.lora import lora_family
from genpipe.checkpoints.lora_names import split
from genpipe.checkpoints.parts import Parts
from genpipe.checkpoints.recognition import CHECKPOINT, EMBEDDING, LORA, UNET, describe, kind_of
from genpipe.checkpoints.single_file import file_parts
from genpipe.checkpoints.source import Folder
from genpipe.checkpoints.tensors import TensorFile, open_tensors, shapes_of
from genpipe.messages import one_line

_NAMES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)"}
_FORMS = {
    "mid": "LoCon",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "dora": "DoRA",
    "magnitude": "DoRA",
}
_MARK = ("text_encoder", "lora_te", "te1.", "te2.", "text_encoders.")
_TAGS = 10  # of a LoRA's training, the commonest


def describe_path(path: str | Path, *, allow_pickle: bool = False) -> dict[str, str]:
    """Say what a file of weights, or a folder in the diffusers layout, is.

    Returns:
        Lines for people, by their titles: "is", "predicts", "weights", "SHA-256", ….

    Raises:
        CheckpointError: it is not there, corrupt, or of a family that genpipe does not run.
    """
    path = Path(os.path.expanduser(str(path)))
    if path.is_dir():
        wanted = _foreign(path)
        if wanted is not None:
            return _wrapped(path, wanted)
        parts = folder_parts(Folder(path))
        files = [
            file
            for part in (*parts.texts, parts.unet, *([] if parts.vae is None else [parts.vae]))
            for file in part.stored.open()
        ]
        return {"is": f"a folder of {parts.family.title} in the diffusers layout", **_model(parts), **_weights(files)}
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    file = open_tensors(path, allow_pickle=allow_pickle)
    kind = kind_of(shapes_of(file))
    digest = file_sha256(path)
    hashes = {"A1111's hash": digest[:10], "SHA-256": digest}
    if kind in (CHECKPOINT, UNET):
        parts = file_parts(path, allow_pickle=allow_pickle)
        what = "a checkpoint" if kind == CHECKPOINT else "a U-Net alone"
        rows = {"is": f"{what} of {parts.family.title}", **_model(parts), **_ema(file)}
    elif kind == LORA:
        rows, hashes = _lora(file), {"A1111's hash": data_sha256(path)[:12], "SHA-256": digest}
    elif kind == EMBEDDING:
        rows = _embedding(file)
    else:
        rows = {"is": describe(kind)}
    return {**rows, **_weights([file]), **hashes, **_stated(file.metadata)}


def summary(path: Path) -> str:
    """What a file or a folder of weights is, in one line and without reading it whole: "a checkpoint of …"."""
    try:
        if path.is_dir():
            wanted = _foreign(path)
            if wanted is not None:
                return f"a folder of {wanted.name}, drawn by diffusers"
            return f"a folder of {folder_parts(Folder(path)).family.title}"
        file = open_tensors(path)
        kind = kind_of(shapes_of(file))
        if kind in (CHECKPOINT, UNET):
            return f"a {kind} of {file_parts(path).family.title}"
        rows = _lora(file) if kind == LORA else _embedding(file) if kind == EMBEDDING else {"is": describe(kind)}
        return rows["is"]
    except CheckpointError as error:
        return one_line(str(error).removeprefix(str(path)).lstrip(": "), 120)


def _foreign(path: Path) -> Foreign | None:
    return foreign(Folder(path)) if (path / INDEX).is_file() else None


def _wrapped(path: Path, wanted: Foreign) -> dict[str, str]:
    """What a folder says of itself that diffusers draws."""
    files = [open_tensors(file) for part in wanted.parts for file in sorted((path / part).glob("*.safetensors"))]
    return {
        "is": f"a folder of {wanted.name} in the diffusers layout, drawn by diffusers",
        "saved by": f"diffusers {wanted.version or 'of an unknown version'}",
        "parts": ", ".join(f"{part} ({kind})" for part, (_, kind) in wanted.parts.items()),
        **({"runs": f"code of its own ({', '.join(wanted.code)}), with --trust-remote-code"} if wanted.code else {}),
        **_weights(files),
    }


def _model(parts: Parts) -> dict[str, str]:
    unet, config = parts.unet.config, parts.scheduler_config
    further = unet.in_channels - unet.out_channels
    takes = {
        0: "latents",
        1: "latents and a map of depth",
        4: "latents and an image to edit",
        5: "latents, a mask and an image",
    }
    texts = len(parts.family.texts)
    encoders = f"{texts} text encoders" if texts > 1 else "text encoder"
    lacks = [name for name, missing in ((encoders, not parts.texts), ("VAE", parts.vae is None)) if missing]
    predicted = str(config.get("prediction_type", "epsilon"))
    zero = ", zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    height, width = (8 * side for side in unet.sample_shape)
    return {
        "family": parts.family.name,
        "takes": takes.get(further, f"{unet.in_channels} channels"),
        "predicts": {"epsilon": "noise (epsilon)", "v_prediction": f"velocity (v_prediction){zero}"}.get(
            predicted, predicted
        ),
        "size": f"{width} x {height}",
        "parts": ", ".join(name for name in ("U-Net", encoders, "VAE") if name not in lacks),
        **({"lacks": f"{' and '.join(lacks)}: see --vae and --text-encoder"} if lacks else {}),
    }


def _ema(file: TensorFile) -> dict[str, str]:
    count = sum(key.startswith("model_ema.") for key in file.entries)
    return {"also holds": "a moving average of the U-Net from training, which is not used"} if count > 100 else {}


def _weights(files: Iterable[TensorFile]) -> dict[str, str]:
    numbers, size = Counter[str](), 0
    for file in files:
        size += file.path.stat().st_size
        for entry in file.entries.values():
            numbers[_NAMES.get(entry.dtype, entry.dtype)] += math.prod(entry.shape)
    total = sum(numbers.values())
    kinds = ", ".join(
        f"{100 * count / total:.0f} % {name}" for name, count in numbers.most_common() if count > total / 200
    )
    kinds = kinds.removeprefix("100 % ")
    return {"weights": f"{kinds or 'none'}; {total / 1e6:,.1f} million numbers, {size / 1e6:,.1f} MB"}


def _lora(file: TensorFile) -> dict[str, str]:
    found = {key: named for key in file.entries if (named := split(key)) is not None}
    kinds = {named.kind for named in found.values()}
    forms = list(dict.fromkeys(form for kind, form in _FORMS.items() if kind in kinds)) or ["LoRA"]
    family = lora_family(file)
    modules = {named.module for named in found.values()}
    texts = sum(module.startswith(_MARK) for module in modules)
    ranks = {
        file.entries[key].shape[0]
        for key, named in found.items()
        if named.kind in ("down", "hada_w1_b") and file.entries[key].shape
    }
    rank = f"{min(ranks)} to {max(ranks)}" if len(ranks) > 1 else str(*ranks)
    return {
        "is": f"a {' and '.join(forms)} for {family.title if family else 'a family that its tensors do not tell'}",
        "changes": f"layers: {len(modules) - texts} of the U-Net, {texts} of the text encoders",
        **({"rank": rank} if rank else {}),
    }


def _embedding(file: TensorFile) -> dict[str, str]:
    shapes = [(1, *entry.shape)[-2:] for entry in file.entries.values() if entry.shape]
    widths = [width for _, width in shapes]
    family = next((family for family in FAMILIES if family.context_channels == sum(widths)), None)
    return {
        "is": f"a textual inversion for {family.title if family else 'another model'}",
        "vectors": f"{shapes[0][0]} of {' and '.join(map(str, widths))}",
        "word": file.path.stem,
    }


def _stated(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file's metadata says that people ask for."""
    titles = {
        "title": ("modelspec.title", "ss_output_name"),
        "author": ("modelspec.author",),
        "made from": ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture"),
        "triggered by": ("modelspec.trigger_phrase",),
        "license": ("modelspec.license",),
    }
    found: dict[str, str] = {}
    for title, keys in titles.items():
        values = [value for key in keys if (value := metadata.get(key, "")) not in ("", "None")]
        if values:
            found[title] = one_line(values[0], 200)
    tags = _tags(metadata.get("ss_tag_frequency", ""))
    return {**found, **({"trained on": ", ".join(tags)} if tags else {})}


def _tags(text: str) -> list[str]:
    """The commonest tags of a LoRA's training images, each in one line."""
    try:
        frequencies = json.loads(text)
        counts = Counter[str]()
        for of in frequencies.values():
            counts.update({re.sub(r"\s+", " ", str(tag)).strip(): int(count) for tag, count in of.items()})
    except (ValueError, AttributeError, TypeError):
        return []
    return [one_line(tag, 40) for tag, _ in counts.most_common(_TAGS)]
