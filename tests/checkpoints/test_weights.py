"""Weights are read as files store them: patched, in fp8, transposed, three in one, or as convolutions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.layout import Layout
from genpipe.checkpoints.tensors import Safetensors
from genpipe.checkpoints.weights import read_weights


class Added:
    """A patch that adds a number to some weights, and notes what it was called with."""

    def __init__(self, number: float, *names: str) -> None:
        self.number, self.names = number, frozenset(names)
        self.seen: list[torch.dtype] = []

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        self.seen.append(tensor.dtype)
        return tensor + self.number


def test_patches_change_what_they_name_in_fp32_and_nothing_else(edited: Any) -> None:
    edited.edit_weights("unet", lambda state: {key: tensor.half() for key, tensor in state.items()})
    plain = load_checkpoint(edited.root)
    small, back = Added(1e-5, "unet.conv_in.bias", "vae.decoder.conv_in.bias"), Added(-1e-5, "unet.conv_in.bias")
    patched = replace(plain, patches=(small, back))
    unet, vae = patched.read_again(plain.unet), patched.read_again(plain.vae)
    # One after the other without a rounding between: a step of fp16 there is 3e-5.
    assert all(torch.equal(tensor, plain.unet.state_dict()[name]) for name, tensor in unet.state_dict().items())
    name = "decoder.conv_in.bias"
    assert torch.equal(vae.get_parameter(name), plain.vae.get_parameter(name) + 1e-5)
    assert set(small.seen + back.seen) == {torch.float32}
    assert unet.get_parameter("conv_in.bias").dtype == torch.float16


def test_a_patched_weight_keeps_the_type_that_it_is_stored_in(edited: Any) -> None:
    edited.edit_weights("unet", lambda state: {key: tensor.bfloat16() for key, tensor in state.items()})
    plain = load_checkpoint(edited.root)
    unet = replace(plain, patches=(Added(0.25, "unet.conv_in.bias"),)).read_again(plain.unet)
    before, after = plain.unet.get_parameter("conv_in.bias"), unet.get_parameter("conv_in.bias")
    assert torch.equal(after, (before.float() + 0.25).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_fp8_are_widened(edited: Any, dtype: torch.dtype) -> None:
    state = load_file(edited.weights("unet"))
    edited.edit_weights("unet", lambda state: {key: tensor.to(dtype) for key, tensor in state.items()})
    checkpoint = load_checkpoint(edited.root)
    for key, tensor in state.items():
        ours = checkpoint.unet.state_dict()[checkpoint.stored["unet"].names.ours(key) or ""]
        assert ours.dtype == torch.float16 and torch.equal(ours.float(), tensor.to(dtype).float())


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
def test_weights_in_fp8_are_multiplied_by_their_scale(edited: Any, suffix: str, rows: bool) -> None:
    key = "down_blocks.0.resnets.0.conv1"
    weight = load_file(edited.weights("unet"))[f"{key}.weight"]
    scale = (weight.abs().amax((1, 2, 3)) if rows else weight.abs().max()) / 448
    stored = (weight / (scale[:, None, None, None] if rows else scale)).to(torch.float8_e4m3fn)

    def scaled(state: dict[str, Tensor]) -> dict[str, Tensor]:
        extra = {f"{key}.weight": stored, f"{key}.{suffix}": scale.clone(), "scaled_fp8": torch.zeros(2)}
        return {**state, **extra, f"{key}.scale_input": torch.ones(1)}

    edited.edit_weights("unet", scaled)
    ours = load_checkpoint(edited.root).unet.get_parameter("down.0.residuals.0.conv1.weight")
    assert ((ours.float() - weight).abs() <= weight.abs() / 15 + weight.abs().max() / 448 / 64).all()


def test_a_scale_without_its_weight_is_unexpected(edited: Any) -> None:
    edited.edit_weights("unet", lambda state: {**state, "nothing.scale_weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"unexpected: nothing\.scale_weight"):
        load_checkpoint(edited.root)


NAMES = Layout(
    folder="net",
    stem="net",
    names=(
        ("query.weight", "in_proj_weight#0"),
        ("key.weight", "in_proj_weight#1"),
        ("value.weight", "in_proj_weight#2"),
        ("projection.weight", "projection#T"),
        ("conv.{}", "conv.{}#C"),
    ),
    prefix="model.",
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("query", "key", "value", "projection"):
            self.add_module(name, nn.Linear(4, 6, bias=False))
        self.conv = nn.Linear(4, 6)


def stored(net: Net) -> dict[str, Tensor]:
    state = net.state_dict()
    return {
        "model.in_proj_weight": torch.cat([state[f"{name}.weight"] for name in ("query", "key", "value")]),
        "model.projection": state["projection.weight"].T.contiguous(),
        "model.conv.weight": state["conv.weight"][..., None, None],
        "model.conv.bias": state["conv.bias"],
        "other.weight": torch.zeros(3),
    }


def read(path: Path, state: dict[str, Tensor]) -> Net:
    save_file(state, path / "net.safetensors")
    net = Net()
    read_weights(net, NAMES, [Safetensors(path / "net.safetensors")], device="cpu", dtype=None)
    return net


def test_marked_tensors_are_turned_into_ours(tmp_path: Path) -> None:
    net = Net()
    for change in (lambda s: s, lambda s: {**s, "model.conv.weight": s["model.conv.weight"][:, :, 0, 0].contiguous()}):
        again = read(tmp_path, change(stored(net)))
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    assert {NAMES.theirs(name).partition("#")[0] for name in net.state_dict()} == stored(net).keys() - {"other.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("model.in_proj_weight"),
            "missing: model.in_proj_weight$",
        ),
        (lambda s: s.update({"model.more": torch.zeros(1)}), "unexpected: model.more"),
        (
            lambda s: s.update({"model.in_proj_weight": torch.zeros(12, 4)}),
            r"in_proj_weight is \(12, 4\), not \(18, 4\)",
        ),
        (lambda s: s.update({"model.projection": torch.zeros(6, 4)}), r"projection is \(6, 4\), not \(4, 6\)"),
    ],
)
def test_marked_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    state = stored(Net())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, state)


def test_a_long_list_of_names_is_cut(edited: Any) -> None:
    edited.edit_weights("unet", lambda state: {key: tensor for key, tensor in state.items() if "resnets" not in key})
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more") as caught:
        load_checkpoint(edited.root)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 and so on", r"it is a pickle file \(.ckpt\) under a wrong name"),
        (b"<!DOCTYPE html><html>", "it is a web page, not weights: download it again"),
        (b'{"error": "not found"}', "it is JSON text, not weights: download it again"),
        (b"GGUF\x03\x00\x00\x00", "it is a GGUF file under a wrong name"),
    ],
)
def test_files_that_are_something_else_say_what(edited: Any, content: bytes, message: str) -> None:
    edited.weights("unet").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(edited.root)
