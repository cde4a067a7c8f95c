"""The check against diffusers, run for real on families whose networks are made tiny."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return importlib.import_module("scripts.evaluate.parity")


def small(family: Any) -> Any:
    """The same family with narrow networks: every width a sixteenth or less, every transformer one or two blocks deep."""
    narrow = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    texts = {name: {**shape, **narrow, "projection_dim": 24} for name, shape in family.texts.items()}
    levels = family.unet.get("block_out_channels", (320, 640, 1280, 1280))
    unet = {
        **family.unet,
        "block_out_channels": tuple(width // 16 for width in levels),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 32 * len(texts),
        "sample_size": 8,
    }
    if family.pooled:
        numbers = 5 if len(levels) == 4 else 6
        unet |= {"transformer_layers_per_block": 1, "addition_time_embed_dim": 8}
        unet["projection_class_embeddings_input_dim"] = 24 + numbers * 8
    vae = {**family.vae, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    return replace(family, texts=texts, unet=unet, vae=vae, size=64)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sdxl_turbo", "sdxl_refiner"])
def test_each_family_agrees_and_another_seed_does_not(parity: ModuleType, tmp_path: Path, name: str) -> None:
    family = small(parity.FAMILIES[name])
    result = parity.check(family, tmp_path, family.steps)
    assert result["ok"], result
    assert all(row["latent_difference"] <= 1e-4 for row in result["solvers"].values())
    assert result["changed_seed"]["pixel_difference"] > 20


def test_a_difference_is_told(parity: ModuleType) -> None:
    ours, theirs = ((torch.zeros(2, 2, 3).numpy(), torch.ones(1, 4, 2, 2)) for _ in range(2))
    assert parity.agrees(parity.compare(ours, theirs))
    ours[0][0, 0, 0] = 2.0
    assert not parity.agrees(parity.compare(ours, theirs))
