"""Samples of checkpoints: JSON configs, schedulers, tokenizer files, the headers of safetensors files, lists of shards."""

import json
from pathlib import Path
from random import Random
from typing import Any

from genpipe.checkpoints.schema import DEFAULTS, MODEL_INDEX, TEXT_ENCODER, UNET, VAE
from genpipe.sampling.settings import DEFAULTS as SCHEDULERS
from scripts.evaluate.fuzz.material import CONFIGS, SCHEDULER, WEIGHTS, Material
from scripts.evaluate.fuzz.sandbox import Sample, command
from scripts.evaluate.fuzz.values import ODD, as_json, mutated, odd, spoiled

_KEYS = {
    "model_index.json": MODEL_INDEX,
    "genpipe.json": DEFAULTS,
    "unet/config.json": UNET,
    "vae/config.json": VAE,
    "text_encoder/config.json": TEXT_ENCODER,
}
_TOKENIZER = {
    "tokenizer_config.json": (
        *("added_tokens_decoder", "model_max_length", "bos_token", "eos_token", "unk_token", "pad_token", "sep_token"),
        *("additional_special_tokens", "extra_special_tokens", "tokenizer_class", "padding_side"),
    ),
    "special_tokens_map.json": ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens"),
    "added_tokens.json": ("x", "a"),
    "vocab.json": ("a", "!", "new"),
    "tokenizer.json": ("model", "added_tokens", "normalizer", "truncation"),
}


def _draw(name: str, folder: Path) -> Sample:
    """Draw with a spoiled checkpoint: small whatever it says, in one step."""
    arguments = ["a red cat", "--model", str(folder), "--size", "16x16", "--steps", "1", "--seed", "1", "-q"]
    return command(name, [*arguments, "--device", "cpu", "--dtype", "fp32"], images=True)


def configs(rng: Random, material: Material, folder: Path) -> Sample:
    """One key of one config holds an odd value, is gone, or the file is spoiled."""
    material.copy(folder)
    name = rng.choice((*CONFIGS, "genpipe.json"))
    path = folder / name
    content = json.loads(path.read_bytes())
    if rng.random() < 0.1:
        data = mutated(rng, path.read_bytes())
        path.write_bytes(data)
        return _draw(f"{name}: bytes {data[:60]!r}", folder)
    if rng.random() < 0.25:
        changed = spoiled(rng, content)
        path.write_bytes(as_json(changed))
        return _draw(f"{name}: spoiled {_difference(content, changed)}", folder)
    key = rng.choice(sorted(content.keys() | _KEYS.get(name, SCHEDULER).keys()))
    value = odd(rng)
    path.write_bytes(as_json({**content, key: value}))
    return _draw(f"{name}: {key}={value!r:.100}", folder)


def schedulers(rng: Random, material: Material, folder: Path) -> Sample:
    """A scheduler of our own list with up to three odd settings."""
    material.copy(folder)
    kind = rng.choice(sorted(SCHEDULERS))
    keys = sorted({*SCHEDULERS[kind], *SCHEDULER} - {"_class_name"})
    odd_ones = {rng.choice(keys): odd(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))}
    content = {**SCHEDULER, "_class_name": kind, **odd_ones}
    (folder / "scheduler" / "scheduler_config.json").write_bytes(as_json(content))
    return _draw(f"{kind}: {odd_ones!r:.120}", folder)


def tokenizers(rng: Random, material: Material, folder: Path) -> Sample:
    """A file of the tokenizer holds an odd value, or bytes of it are changed."""
    material.copy(folder)
    part = folder / "tokenizer"
    vocab = json.loads((part / "vocab.json").read_bytes())
    if rng.random() < 0.15:
        name = rng.choice(("merges.txt", "vocab.json", "tokenizer_config.json"))
        data = mutated(rng, (part / name).read_bytes())
        (part / name).write_bytes(data)
        return _draw(f"tokenizer/{name}: bytes", folder)
    name = rng.choice(sorted(_TOKENIZER))
    base: dict[str, Any] = {"model": {"vocab": vocab, "merges": []}, "added_tokens": []}
    if name != "tokenizer.json":
        base = json.loads((part / name).read_bytes()) if (part / name).exists() else {}
    if rng.random() < 0.3:
        content = spoiled(rng, base)
        what = "spoiled"
    else:
        key, value = rng.choice(_TOKENIZER[name]), odd(rng)
        content, what = {**base, key: value}, f"{key}={value!r:.80}"
    (part / name).write_bytes(as_json(content))
    if rng.random() < 0.5 and name != "tokenizer_config.json":
        (part / "tokenizer_config.json").write_text("{}")
    return _draw(f"tokenizer/{name}: {what}", folder)


def headers(rng: Random, material: Material, folder: Path) -> Sample:
    """The header of a safetensors file is spoiled: names, shapes, dtypes, offsets, its length, or bytes."""
    material.copy(folder)
    name = rng.choice(WEIGHTS)
    data = (material.checkpoint / name).read_bytes()
    length = int.from_bytes(data[:8], "little")
    (folder / name).unlink()
    what = rng.random()
    if what < 0.2:
        spoiled_data, said = mutated(rng, data[: 8 + length]) + data[8 + length :], "bytes"
    elif what < 0.3:
        size = rng.choice((0, 1, length - 1, length + 1, 10**6, 2**62, 2**64 - 1))
        spoiled_data, said = size.to_bytes(8, "little") + data[8:], f"a header of {size}"
    elif what < 0.4:
        spoiled_data, said = data[: rng.randrange(len(data))], "cut"
    else:
        header = json.loads(data[8 : 8 + length])
        key, entry = rng.choice(sorted(header)), rng.choice(("shape", "dtype", "data_offsets", None, "name"))
        value = odd(rng)
        if entry == "name":
            header[str(rng.choice(ODD))] = header.pop(key)
        elif entry is None or not isinstance(header[key], dict):
            header[key] = value
        else:
            header[key] = {**header[key], entry: value}
        text = as_json(header)
        spoiled_data, said = len(text).to_bytes(8, "little") + text + data[8 + length :], f"{key}.{entry}={value!r:.60}"
    (folder / name).write_bytes(spoiled_data)
    return _draw(f"{name}: {said}", folder)


def shards(rng: Random, material: Material, folder: Path) -> Sample:
    """A list of shards holds something else."""
    material.copy(folder)
    name = rng.choice(WEIGHTS[:2])
    (folder / name).rename(folder / name.replace(".safetensors", "-00001-of-00001.safetensors"))
    shard = Path(name).name.replace(".safetensors", "-00001-of-00001.safetensors")
    content = spoiled(
        rng, {"metadata": {"total_size": 5}, "weight_map": {"conv_in.weight": shard, "conv_in.bias": shard}}
    )
    if rng.random() < 0.2:
        content = odd(rng)
    (folder / f"{name}.index.json").write_bytes(as_json(content))
    return _draw(f"{name}.index.json: {content!r:.100}", folder)


def _difference(before: dict[str, Any], after: Any) -> str:
    if not isinstance(after, dict):
        return repr(after)[:80]
    return repr({key: after.get(key, "(gone)") for key in {**before, **after} if before.get(key) != after.get(key)})[
        :100
    ]
