"""ControlNets are read from folders and from files of either naming to equal weights, and only for models that they fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor

from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.layout import CONTROLNET
from genpipe.checkpoints.ldm_layout import controlnet
from genpipe.models.controlnet import ControlNet, ControlNetConfig
from tests.checkpoints.loopback_hub import ID, Hub, point_at
from tests.checkpoints.tiny_families import NAMES, unet_config

# Not all of the middle's depth is that of the coarsest level in files: it is here, as in all that are published.
FAMILIES = ["sd1", "sd2", "sdxl"]


def made_for(family: str, **changes: Any) -> ControlNet:
    """A ControlNet of random weights for the tiny model of a family."""
    unet = unet_config(NAMES[family])
    own = {name: getattr(unet, name) for name in unet.__dataclass_fields__}
    torch.manual_seed(2)
    network = ControlNet(ControlNetConfig(**{**own, "image_channels": (8, 16), **changes}))
    for name, parameter in network.named_parameters():
        if "zero" in name or "conv_out" in name:
            torch.nn.init.normal_(parameter)
    return network


def named(network: ControlNet, prefix: str | None) -> dict[str, Tensor]:
    """Its tensors by CompVis' names behind a prefix, or for None by diffusers'."""
    config: Any = network.config
    names = CONTROLNET if prefix is None else controlnet(config, prefix)
    return {names.theirs(key): tensor for key, tensor in network.state_dict().items()}


def same(one: ControlNet, other: ControlNet) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def read(singles: Callable[[str], Path]) -> Callable[..., ControlNet]:
    """`read(family, path)`: the ControlNet at a path, loaded beside the family's model."""

    def load(family: str, path: str | Path, **options: Any) -> ControlNet:
        (network,) = load_checkpoint(singles(family), controls=[path], **options).controls
        assert isinstance(network, ControlNet)
        return network

    return load


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_diffusers_is_read(tmp_path: Path, read: Callable[..., ControlNet], family: str) -> None:
    ours = made_for(family)
    config: Any = ours.config
    theirs: Any = ControlNetModel.from_config(config.to_dict())
    theirs.load_state_dict(named(ours, None), strict=True)
    theirs.save_pretrained(tmp_path / "canny")
    found = read(family, tmp_path / "canny")
    assert same(found, ours) and found.config.channels == config.channels
    assert (found.config.heads, found.config.depth) == (config.heads, config.depth)


@pytest.mark.parametrize("prefix", [None, "", "control_model."])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_read_by_either_naming(
    tmp_path: Path, read: Callable[..., ControlNet], family: str, prefix: str | None
) -> None:
    ours = made_for(family)
    save_file(named(ours, prefix), tmp_path / "canny.safetensors")
    found = read(family, tmp_path / "canny.safetensors")
    assert same(found, ours)
    for name in ("channels", "attention", "layers", "heads", "context_channels", "linear_projection", "image_channels"):
        assert getattr(found.config, name) == getattr(ours.config, name), name


def test_one_without_attention_is_read(tmp_path: Path, read: Callable[..., ControlNet]) -> None:
    ours = made_for("sdxl", attention=(False,) * 3, attention_up=(False,) * 3, middle="residual")
    save_file(named(ours, None), tmp_path / "small.safetensors")
    assert same(read("sdxl", tmp_path / "small.safetensors"), ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_compvis_names_are_those_that_diffusers_knows(family: str) -> None:
    ours = made_for(family, image_channels=(8, 8, 16, 16))
    expected = named(ours, None)
    converted = convert_controlnet_checkpoint(named(ours, "control_model."), {"layers_per_block": 2})
    converted = {key: tensor for key, tensor in converted.items() if tensor is not None}
    missing = {key for key in expected if key not in converted}
    assert missing <= {key for key in expected if key.startswith("add_embedding.")}  # diffusers lacks SDXL's here
    assert all(torch.equal(converted[key], expected[key]) for key in converted)


def test_pickles_are_read_only_where_that_is_allowed(tmp_path: Path, read: Callable[..., ControlNet]) -> None:
    ours = made_for("sd1")
    torch.save({"state_dict": named(ours, "control_model.")}, tmp_path / "canny.pth")
    with pytest.raises(CheckpointError, match="pickle"):
        read("sd1", tmp_path / "canny.pth")
    assert same(read("sd1", tmp_path / "canny.pth", allow_pickle=True), ours)


@pytest.mark.parametrize("alone", [False, True])
def test_a_repository_of_the_hub_is_read(
    tmp_path: Path, read: Callable[..., ControlNet], monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    ours, root = made_for("sd1"), tmp_path / "repository"
    if alone:
        root.mkdir()
        save_file(named(ours, ""), root / "canny.safetensors")
    else:
        config: Any = ours.config
        theirs: Any = ControlNetModel.from_config(config.to_dict())
        theirs.load_state_dict(named(ours, None), strict=True)
        theirs.save_pretrained(root)
    hub = Hub(root)
    try:
        point_at(hub.address, tmp_path / "cache", monkeypatch)
        assert same(read("sd1", ID), ours)
    finally:
        hub.close()


def test_one_is_found_by_its_name(tmp_path: Path, singles: Callable[[str], Path]) -> None:
    (tmp_path / "models" / "ControlNet").mkdir(parents=True)
    save_file(named(made_for("sd1"), ""), tmp_path / "models" / "ControlNet" / "canny.safetensors")
    (network,) = load_checkpoint(singles("sd1"), controls=["Canny"], model_dir=tmp_path).controls
    assert isinstance(network, ControlNet) and same(network, made_for("sd1"))
    with pytest.raises(CheckpointError, match=r"there is no control model 'cannie' in .*: did you mean canny\?"):
        load_checkpoint(singles("sd1"), controls=["cannie"], model_dir=tmp_path)


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize(
    ("family", "change", "says"),
    [
        ("sd2", None, r"is a ControlNet for Stable Diffusion 2.x, and .* is Stable Diffusion 1.x \(vectors"),
        ("sdxl", None, r"is a ControlNet for another model, and .*1.x \(vectors of the prompt: 192, not 64\)"),
        ("sd1", without("control_model.zero_convs.3.0.bias"), "missing: control_model.zero_convs.3.0.bias"),
        ("sd1", without("control_model.input_blocks.0.0.weight"), "lacks the tensor"),
        ("sd1", lambda state: {**state, "control_model.difference": torch.zeros(1)}, "of a form that .*difference"),
        ("sd1", lambda state: {**state, "control_model.task_embedding": torch.zeros(1)}, "of a form that .*task_emb"),
        (
            "sd1",
            lambda state: {"lora_controlnet": torch.zeros(1)},
            "is a Control-LoRA, not a ControlNet and not a T2I-Adapter",
        ),
        (
            "sd1",
            lambda state: {"emb_params": torch.zeros(1, 4)},
            "is a textual inversion, not a ControlNet and not a T2I-Adapter",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, read: Callable[..., ControlNet], family: str, change: Any, says: str
) -> None:
    state = named(made_for(family), "control_model.")
    save_file(state if change is None else change(state), tmp_path / "canny.safetensors")
    with pytest.raises(CheckpointError, match=says) as caught:
        read("sd1", tmp_path / "canny.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_channels": (8, 8, 16)}, r"pixels per latent: 4, not 2"),
        ({"channels": (64, 64, 128)}, r"levels: \(64, 64, 128\), not"),
        ({"layers": (1, 2, 2)}, "layers:"),
        ({"in_channels": 9}, "latents: 9, not 4"),
    ],
)
def test_other_sizes_are_refused(
    tmp_path: Path, read: Callable[..., ControlNet], changes: dict[str, Any], says: str
) -> None:
    save_file(named(made_for("sd1", **changes), ""), tmp_path / "canny.safetensors")
    with pytest.raises(CheckpointError, match=says):
        read("sd1", tmp_path / "canny.safetensors")


def test_what_is_not_there_or_something_else_is_said(tmp_path: Path, read: Callable[..., ControlNet]) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist: give a file or a folder"):
        read("sd1", tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"the folder .* does not exist"):
        read("sd1", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no config\.json: give the folder of a ControlNet or T2I-Adapter"):
        read("sd1", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(CheckpointError, match="it is that of a UNet2DConditionModel"):
        read("sd1", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel", "novelty": 3}))
    with pytest.raises(CheckpointError, match="novelty"):
        read("sd1", tmp_path)


def test_the_controls_stay_where_a_lora_changes_the_model(tmp_path: Path, singles: Callable[[str], Path]) -> None:
    save_file(named(made_for("sd1"), ""), tmp_path / "canny.safetensors")
    checkpoint = load_checkpoint(singles("sd1"), controls=[tmp_path / "canny.safetensors"])
    assert checkpoint.with_patches([]).controls == checkpoint.controls
