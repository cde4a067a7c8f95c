"""Whatever a checkpoint's JSON files hold, it loads, or one line names the file, the key, the value and what is allowed."""

import inspect
import json
import time
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from transformers import CLIPConfig, CLIPTextConfig

from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.schema import (
    DEFAULTS,
    MODEL_INDEX,
    SHARDS,
    TEXT_ENCODER,
    UNET,
    VAE,
    check_config,
)
from genpipe.embedded import EMBEDDED
from genpipe.messages import LINE

NAN = float("nan")
ODD = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 10**30, 1.5, NAN, float("inf"), -float("inf"), "", "a", "8", "x" * 5000),
    *("\x1b[2J", "\ud800", [], [1], [True], [None], [[1]], [10**9] * 2, [NAN], {}, {"content": 5}, {"a": {"b": [1]}}),
]
TABLES = {
    "model_index.json": MODEL_INDEX,
    "genpipe.json": DEFAULTS,
    "unet/config.json": UNET,
    "vae/config.json": VAE,
    "text_encoder/config.json": TEXT_ENCODER,
}


def keys_of(root: Path, name: str) -> list[str]:
    """The keys that the file has, and those that its table knows."""
    held = json.loads((root / name).read_text()) if (root / name).exists() else {}
    return sorted(held.keys() | TABLES[name].keys() | {"new_key"})


@pytest.mark.parametrize("name", TABLES)
def test_any_value_of_any_key_gives_a_checkpoint_or_one_clear_line(edited: Any, name: str) -> None:
    path = edited.root / name
    content = json.loads(path.read_text()) if path.exists() else {}
    loaded, refused = 0, 0
    for number, key in enumerate(keys_of(edited.root, name)):
        # A third of the values for each key, in turn; of a key that is not looked at, any value is like any other.
        for value in ODD[number % 3 :: 3] if key in TABLES[name] else ODD[-1:]:
            path.write_text(json.dumps({**content, key: value}))
            start = time.monotonic()
            try:
                load_checkpoint(edited.root)
                loaded += 1
            except CheckpointError as error:
                line, root = str(error), str(edited.root)
                refused += 1
                assert line.isprintable() and len(line) - len(root) < LINE and root in line, (key, value, line)
                assert name in line or "its " in line or "the checkpoint" in line, (key, value, line)
            assert time.monotonic() - start < 10, (key, value)
    assert loaded > 1 and refused > 20


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("text_encoder/config.json", "vocab_size", [True], "vocab_size must be a whole number from 1 to 1048576"),
        ("text_encoder/config.json", "vocab_size", 10**12, "not 1000000000000"),
        ("text_encoder/config.json", "layer_norm_eps", [None], "layer_norm_eps must be a number from 0 to 1 or null"),
        ("text_encoder/config.json", "max_position_embeddings", {"content": 5}, "{'content': 5}"),
        ("text_encoder/config.json", "use_attention_mask", True, "use_attention_mask must be false or null, not True"),
        ("text_encoder/config.json", "quantization_config", {"bits": 4}, "the key 'quantization_config' ({'bits': 4})"),
        ("unet/config.json", "transformer_layers_per_block", [2**31, 1], "not [2147483648, 1]"),
        (
            "unet/config.json",
            "cross_attention_norm",
            "layer_norm",
            "cross_attention_norm must be null, not 'layer_norm'",
        ),
        ("unet/config.json", "attention_kind", "linear", "'attention_kind' ('linear') is not one that genpipe knows"),
        (
            "vae/config.json",
            "scaling_factor",
            NAN,
            "scaling_factor must be a number above 0 up to 10000 or null, not nan",
        ),
        ("genpipe.json", "steps", 10**9, "steps must be a whole number from 1 to 1000, not 1000000000"),
        ("genpipe.json", "stpes", 3, "the key 'stpes' (3)"),
    ],
)
def test_the_line_says_what_is_allowed(edited: Any, name: str, key: str, value: Any, says: str) -> None:
    path = edited.root / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, key: value}))
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(edited.root)
    assert says in str(caught.value) and f"{name} cannot be used: " in str(caught.value)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xef\xbb\xbf{}", None),
        (b"", "it is not JSON: Expecting value at line 1, column 1 of ''"),
        (b"\xff\xfe{\0}\0", "it is not JSON: byte 0 is not UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a": ' * 100_000, "it is nested too deeply"),
        (b'{"in_channels": ' + b"9" * 5000 + b"}", "more than 4300 digits"),
        (b'"' + b"x" * 300_000, "Unterminated string"),
        (b'{"\\ud800": 1}', r"the key '\ud800' (1)"),
    ],
)
def test_what_is_no_json_object_is_told(edited: Any, content: bytes, says: str | None) -> None:
    (edited.root / "unet" / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(edited.root)
    assert says is None or f"unet/config.json cannot be used: {says}" in str(caught.value) or says in str(caught.value)
    assert len(str(caught.value)) < LINE + len(str(edited.root)) and str(caught.value).isprintable()


def test_what_our_own_and_others_programs_write_is_allowed() -> None:
    for path in sorted(EMBEDDED.rglob("*.json")):
        check_config(str(path.relative_to(EMBEDDED)), json.loads(path.read_text(encoding="utf-8")))
    check_config("unet/diffusion_pytorch_model.safetensors.index.fp16.json", {"weight_map": {"a": "b.safetensors"}})
    with pytest.raises(ValueError, match="weight_map must be an object whose values are each text"):
        check_config("unet/diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": 5}})
    assert SHARDS.keys() == {"weight_map"}


def test_the_configs_of_diffusers_and_transformers_own_classes_are_allowed() -> None:
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(32, 32, 32, 32))
    check_config("unet/config.json", json.loads(unet.to_json_string()))
    averaged = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    state = {key: value for key, value in averaged.state_dict().items() if key != "shadow_params"}
    check_config("unet/config.json", {**json.loads(unet.to_json_string()), **state})
    check_config("vae/config.json", json.loads(AutoencoderKL().to_json_string()))
    check_config("taesd/config.json", json.loads(AutoencoderTiny().to_json_string()))
    for config in (CLIPTextConfig(), CLIPConfig()):
        check_config("text_encoder/config.json", json.loads(json.dumps(config.to_dict())))


def test_every_table_knows_the_keys_that_its_class_is_made_with() -> None:
    for kind, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (AutoencoderTiny, "x")):
        for key, parameter in inspect.signature(kind.__init__).parameters.items():
            if key != "self":
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                check_config(f"{name}/config.json", {"_class_name": kind.__name__, key: default})
