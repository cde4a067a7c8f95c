"""T2I-Adapters are read from folders of diffusers and from their authors' files to equal weights, for models that they fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.adapter import T2IAdapter as TheirAdapter
from safetensors.torch import save_file
from torch import Tensor

from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.layout import T2I_ADAPTER
from genpipe.checkpoints.ldm_layout import t2i_adapter
from genpipe.models.t2i_adapter import T2IAdapter, T2IAdapterConfig

# Of the tiny models: a latent is two pixels wide.
FORMS: dict[str, tuple[str, T2IAdapterConfig]] = {
    "full": ("sd1", T2IAdapterConfig(3, (64, 128, 128), 2, 2, "full_adapter")),
    "of grey images": ("sd1", T2IAdapterConfig(1, (64, 128, 128), 2, 2, "full_adapter")),
    "of XL": ("sdxl", T2IAdapterConfig(3, (64, 128, 128, 128), 2, 4, "full_adapter_xl")),
    "light": ("sd1", T2IAdapterConfig(3, (64, 128), 3, 2, "light_adapter")),
}
Read = Callable[[str, Path], T2IAdapter]


def random(name: str) -> T2IAdapter:
    torch.manual_seed(3)
    return T2IAdapter(FORMS[name][1])


def named(network: T2IAdapter, names: Any) -> dict[str, Tensor]:
    return {names.theirs(key): tensor for key, tensor in network.state_dict().items()}


def same(one: T2IAdapter, other: T2IAdapter) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return one.config == other.config and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def read(singles: Callable[[str], Path]) -> Read:
    def load(family: str, path: Path) -> T2IAdapter:
        (network,) = load_checkpoint(singles(family), controls=[path]).controls
        assert isinstance(network, T2IAdapter)
        return network

    return load


@pytest.mark.parametrize("name", FORMS)
def test_a_folder_of_diffusers_is_read(tmp_path: Path, read: Read, name: str) -> None:
    family, config = FORMS[name]
    theirs: Any = TheirAdapter(
        config.image_channels, list(config.channels), config.residuals, config.factor, config.form
    )
    theirs.load_state_dict(named(random(name), T2I_ADAPTER), strict=True)
    theirs.save_pretrained(tmp_path / "sketch")
    assert same(read(family, tmp_path / "sketch"), random(name))


@pytest.mark.parametrize("naming", ["diffusers", "its authors'", "its authors' with a prefix"])
@pytest.mark.parametrize("name", FORMS)
def test_a_single_file_is_read_by_either_naming(tmp_path: Path, read: Read, name: str, naming: str) -> None:
    family, config = FORMS[name]
    prefix = "adapter." if "prefix" in naming else ""
    names = T2I_ADAPTER if naming == "diffusers" else t2i_adapter(config, prefix)
    save_file(named(random(name), names), tmp_path / "sketch.safetensors")
    assert same(read(family, tmp_path / "sketch.safetensors"), random(name))


def test_its_authors_number_blocks_through_all_levels() -> None:
    full = t2i_adapter(T2IAdapterConfig(), "")
    for ours, theirs in {
        "levels.0.residuals.1.conv2.bias": "body.1.block2.bias",
        "levels.1.project_in.weight": "body.2.in_conv.weight",
        "levels.2.residuals.0.conv1.weight": "body.4.block1.weight",
        "levels.3.residuals.1.conv2.weight": "body.7.block2.weight",
    }.items():
        assert full.theirs(ours) == theirs and full.ours(theirs) == ours
    light = t2i_adapter(T2IAdapterConfig(channels=(320, 640, 1280), residuals=4, form="light_adapter"), "")
    for ours, theirs in {
        "levels.0.project_in.weight": "body.0.in_conv.weight",
        "levels.2.residuals.3.conv1.weight": "body.2.body.3.block1.weight",
        "levels.3.project_out.bias": "body.3.out_conv.bias",
    }.items():
        assert light.theirs(ours) == theirs and light.ours(theirs) == ours


@pytest.mark.parametrize(("name", "family"), [("full", "sdxl"), ("of XL", "sd1")])
def test_one_for_another_model_is_refused_in_one_line(tmp_path: Path, read: Read, name: str, family: str) -> None:
    save_file(named(random(name), T2I_ADAPTER), tmp_path / "sketch.safetensors")
    with pytest.raises(CheckpointError, match=r"is a T2I-Adapter for another model than .*: 64 at 1:\d/") as caught:
        read(family, tmp_path / "sketch.safetensors")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path, read: Read) -> None:
    state = named(random("full"), T2I_ADAPTER)
    del state["adapter.body.1.resnets.1.block2.bias"]
    save_file(state, tmp_path / "sketch.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: adapter\.body\.1\.resnets\.1\.block2\.bias"):
        read("sd1", tmp_path / "sketch.safetensors")
