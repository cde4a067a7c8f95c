"""Single files of distilled networks: fewer blocks, uneven ways up, a smaller middle or none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genpipe.checkpoints import Checkpoint, ldm_layout, load_checkpoint, shapes
from genpipe.checkpoints.single_file_saving import save_single_file
from genpipe.checkpoints.weights import skeleton
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from tests.checkpoints.tiny_families import NAMES, UNET, tiny

FORMS: dict[str, dict[str, Any]] = {
    "SSD-1B": {"depth": (1, 2, 2), "depth_up": (1, (2, 1, 1), (2, 2, 3)), "middle": "residual"},
    "Segmind-Vega": {"depth": (1, 1, 2), "middle": "residual"},
    "KOALA 700M": {"depth": (1, 2, 3), "layers": (1, 1, 1), "middle": None},
    "KOALA 1B": {"depth": (1, 2, 3), "layers": (1, 1, 1)},
    "LCM": {"guidance_channels": 16},
}


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return tiny(NAMES["sdxl"])


@pytest.mark.parametrize("name", FORMS)
def test_distilled_networks_are_read_by_shapes_alone(tmp_path: Path, model: Checkpoint, name: str) -> None:
    torch.manual_seed(1)
    unet = UNet(replace(model.unet.config, **FORMS[name]))
    save_single_file(tmp_path / "model.safetensors", replace(model, unet=unet))
    found = load_checkpoint(tmp_path / "model.safetensors").unet
    assert found.config == unet.config
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in unet.state_dict().items())


def test_the_middle_and_the_way_up_are_numbered_as_in_the_originals(tmp_path: Path, model: Checkpoint) -> None:
    small = UNet(replace(model.unet.config, **FORMS["SSD-1B"]))
    save_single_file(tmp_path / "model.safetensors", replace(model, unet=small))
    keys = [key.removeprefix(UNET) for key in load_file(tmp_path / "model.safetensors")]
    assert {key.split(".")[1] for key in keys if key.startswith("middle_block.")} == {"0"}
    counts = [
        shapes.count({key: () for key in keys}, f"output_blocks.{block}.1.transformer_blocks.") for block in range(9)
    ]
    assert counts == [2, 2, 3, 2, 1, 1, 0, 0, 0]


# As the published files have it: tensors of the U-Net, and some of their names.
PUBLISHED = {
    "sd1": (
        UNetConfig(),
        686,
        "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias",
        "output_blocks.8.2.conv.weight",
    ),
    "sdxl": (
        UNetConfig(
            channels=(320, 640, 1280),
            attention=(False, True, True),
            attention_up=(False, True, True),
            layers=(2, 2, 2),
            depth=(1, 2, 10),
            heads=(5, 10, 20),
            only_cross=(False,) * 3,
            context_channels=2048,
            linear_projection=True,
            added_time_channels=256,
            added_channels=2816,
        ),
        1680,
        "output_blocks.2.1.transformer_blocks.9.ff.net.0.proj.weight",
        "output_blocks.5.2.conv.weight",
    ),
    "sdxl-refiner": (
        UNetConfig(
            channels=(384, 768, 1536, 1536),
            attention=(False, True, True, False),
            attention_up=(False, True, True, False),
            depth=(4, 4, 4, 4),
            heads=(6, 12, 24, 24),
            context_channels=1280,
            linear_projection=True,
            added_time_channels=256,
            added_channels=2560,
        ),
        1220,
        "middle_block.1.transformer_blocks.3.norm3.bias",
        "output_blocks.2.1.conv.weight",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_tensors_under_their_names(name: str) -> None:
    config, count, *names = PUBLISHED[name]
    unet = skeleton(lambda: UNet(config))
    table = ldm_layout.unet(config, prefix="")
    found = {table.theirs(key): tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    assert len(found) == len(unet.state_dict()) == count and set(names) <= found.keys()
    assert all(table.ours(table.theirs(key)) == key for key in unet.state_dict())
    read = shapes.unet_config(found, heads=NAMES[name].heads, sample_size=64)
    assert skeleton(lambda: UNet(read)).state_dict().keys() == unet.state_dict().keys()
    assert (read.heads, read.linear_projection, read.context_channels) == (
        config.heads,
        config.linear_projection,
        config.context_channels,
    )
