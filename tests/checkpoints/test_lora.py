"""LoRA and its kin change weights as diffusers does where it reads them, and else by the plain formula."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint, load_checkpoint, load_lora, save_checkpoint
from genpipe.models.unet import UNet
from tests.checkpoints.lora_files import FORMATS
from tests.conftest import tiny_parts, tiny_xl_parts

pytest.importorskip("peft")


def linear_parts() -> dict[str, Any]:
    """As Stable Diffusion 2 has it: matrices where version 1 has convolutions."""
    parts = tiny_parts()
    torch.manual_seed(3)
    return {**parts, "unet": UNet(replace(parts["unet"].config, linear_projection=True))}


FAMILIES: dict[str, Callable[[], dict[str, Any]]] = {"sd1": tiny_parts, "sd2": linear_parts, "sdxl": tiny_xl_parts}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param) / request.param
    save_checkpoint(directory, **FAMILIES[request.param]())
    return directory


@pytest.fixture(scope="module")
def model(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {
        f"{p}.{k}": t.detach() for p, network in checkpoint.networks.items() for k, t in network.state_dict().items()
    }


def close(a: Tensor, b: Tensor) -> bool:
    # Sums over the rank in another order.
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", FORMATS)
def test_weights_change_by_the_formula_and_come_back(tmp_path: Path, model: Checkpoint, name: str) -> None:
    file = FORMATS[name].make(model)
    save_file(file.tensors, tmp_path / "lora.safetensors", metadata=file.metadata)
    plain = weights(model)
    lora = load_lora(tmp_path / "lora.safetensors", model)
    patched = model.with_patches([lora])
    found = weights(patched)
    assert lora.names == file.expected.keys() and len(lora.names) > 4
    for key, tensor in found.items():
        assert close(tensor, file.expected.get(key, plain[key])), key
        assert torch.equal(tensor, plain[key]) == (key not in file.expected), key
    back = weights(patched.with_patches([]))
    assert all(torch.equal(back[key], tensor) for key, tensor in plain.items())


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if each.reference])
def test_weights_are_those_that_diffusers_fuses(tmp_path: Path, folder: Path, model: Checkpoint, name: str) -> None:
    scale = 1.0 if "DoRA" in name else 0.6  # at other scales PEFT scales the change before it is directed
    save_file(FORMATS[name].make(model).tensors, tmp_path / "lora.safetensors")
    theirs: Any = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    theirs.fuse_lora(lora_scale=scale)
    theirs.unload_lora_weights()
    patched = model.with_patches([load_lora(tmp_path / "lora.safetensors", model, scale)])
    changed = 0
    for part, network in patched.networks.items():
        names = model.stored[part].names
        their = {names.ours(key): tensor for key, tensor in getattr(theirs, part).state_dict().items()}
        for key, tensor in network.state_dict().items():
            assert close(tensor, their[key]), key
            changed += not torch.equal(tensor, model.networks[part].state_dict()[key])
    assert changed >= 4
