"""Files that are no model, or not a whole one, or of no family: one clear line for each."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.single_file_saving import save_single_file
from genpipe.models.unet import UNet as Network
from tests.checkpoints.tiny_families import FIRST_TEXT, NAMES, SD1_TEXT, UNET, Change, marked, tiny

LORA = {"lora_unet_x.lora_down.weight": (4, 8), "lora_unet_x.lora_up.weight": (8, 4), "lora_unet_x.alpha": ()}
OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "LoRA": (LORA, r"is a LoRA, not a model: give it with loras= \(--lora\)"),
    "LoRA of peft": ({"unet.conv_in.lora_A.weight": (4, 4, 3, 3)}, "is a LoRA"),
    "LoHa": ({"lora_unet_x.hada_w1_a": (4, 4)}, "is a LoRA"),
    "VAE": ({"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)}, r"is a VAE.*\(--vae\)"),
    "VAE under its prefix": ({"first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3)}, "is a VAE"),
    "diffusers' VAE": ({"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 3, 3, 3)}, "is a VAE"),
    "text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}, r"is a text encoder.*\(--text-encoder\)"),
    "OpenCLIP": ({"transformer.resblocks.0.ln_1.weight": (8,)}, "is a text encoder"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.k.weight": (8, 8)}, "is a T5 text encoder, not a model"),
    "CLIP vision": ({"vision_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}, "is a CLIP image encoder"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "is a ControlNet"),
    "diffusers' ControlNet": (
        {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (8, 4, 3, 3)},
        "is a ControlNet",
    ),
    "IP-Adapter": ({"ip_adapter.1.to_k_ip.weight": (8, 8), "image_proj.proj.weight": (8, 8)}, "is an IP-Adapter"),
    "embedding": ({"emb_params": (2, 768)}, r"is a textual inversion.*\(--embeddings\)"),
    "embedding of two": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "is a textual inversion"),
    "embedding by its token": ({"<cat>": (768,)}, "is a textual inversion"),
    "upscaler": (
        {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (8, 8, 3, 3)},
        "is an upscaler",
    ),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "is a model of the FLUX family"),
    "FLUX under its prefix": ({f"{UNET}double_blocks.0.img_attn.qkv.weight": (8, 8)}, "is a model of the FLUX family"),
    "SD3": ({f"{UNET}joint_blocks.0.x_block.mlp.fc1.weight": (8, 8)}, "is a model of Stable Diffusion 3"),
    "motion": ({"down_blocks.0.motion_modules.0.proj.weight": (8, 8)}, "is an AnimateDiff motion module"),
    "nothing": (
        {"fc.weight": (10, 8), "fc.bias": (10,), "layer1.0.conv1.weight": (8, 3, 3, 3)},
        "no kind of file that",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_no_model_says_what_it_is(tmp_path: Path, name: str) -> None:
    shapes, message = OTHERS[name]
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "file.safetensors")
    assert str(tmp_path / "file.safetensors") in str(caught.value) and "\n" not in str(caught.value)


def spoiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    del state[f"{UNET}middle_block.0.in_layers.0.bias"], state["first_stage_model.quant_conv.bias"]
    return {**state, f"{UNET}more": torch.zeros(1), f"{UNET}out.0.bias": torch.zeros(7)}


WRONG: dict[str, tuple[str, Change, str]] = {
    "missing, unexpected and of the wrong shape": (
        "sd1",
        spoiled,
        rf"missing: {UNET}middle_block.0.in_layers.0.bias; unexpected: {UNET}more; wrong shape: {UNET}out.0.bias is \(7,\)",
    ),
    "no end": (
        "sd1",
        lambda s: {k: t for k, t in s.items() if k != f"{UNET}out.2.weight"},
        "lacks the tensor out.2.weight",
    ),
    "two families": (
        "sd1",
        lambda s: {**s, f"{FIRST_TEXT}text_model.embeddings.token_embedding.weight": torch.zeros(4, 4)},
        "holds the U-Net of Stable Diffusion 1.x, and a text encoder of another family under conditioner",
    ),
    "another family's text encoder": (
        "sdxl",
        lambda s: {k.replace(FIRST_TEXT, SD1_TEXT): t for k, t in s.items()},
        "holds the U-Net of Stable Diffusion XL, and a text encoder of another family under cond_stage_model.transformer",
    ),
    "two U-Nets": (
        "sd1",
        lambda s: {**s, "unet.down_blocks.0.resnets.0.conv1.weight": torch.zeros(4, 4, 3, 3)},
        "holds two U-Nets, one in diffusers' names",
    ),
    "Playground": ("sdxl", marked(edm_mean=torch.zeros(4), edm_std=torch.ones(4)), "is Playground v2.5"),
    "CosXL": ("sdxl", lambda s: {**s, "edm_vpred.sigma_max": torch.ones(1)}, "is CosXL"),
    "x4 upscaler": ("sd2", lambda s: {**s, f"{UNET}label_emb.weight": torch.zeros(9, 9)}, "is the x4 upscaler"),
    "unCLIP": (
        "sd2",
        lambda s: {**s, f"{UNET}label_emb.0.0.weight": torch.zeros(9, 9), "embedder.model.visual.proj": torch.zeros(1)},
        "is Stable Diffusion unCLIP",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_do_not_fit_get_one_clear_line(tmp_path: Path, singles: Callable[[str], Path], name: str) -> None:
    family, change, message = WRONG[name]
    save_file(change(load_file(singles(family))), tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "file.safetensors")
    assert str(tmp_path / "file.safetensors") in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_that_no_network_takes_are_named_once(tmp_path: Path, singles: Callable[[str], Path]) -> None:
    save_file({**load_file(singles("sd1")), "odd.one": torch.zeros(1)}, tmp_path / "file.safetensors")
    with pytest.warns(UserWarning, match=r"file.safetensors: no network takes odd.one") as caught:
        load_checkpoint(tmp_path / "file.safetensors")
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vae": "missing.safetensors"}, "the file 'missing.safetensors' does not exist"),
        ({"vae": "missing"}, "the folder 'missing' does not exist"),
        ({"text_encoder": "missing.safetensors"}, "the file 'missing.safetensors' does not exist"),
        ({"variant": "fp16"}, "variant 'fp16' goes with a hub id or a folder"),
        ({"revision": "main"}, "revision 'main' goes with a hub id or a folder"),
    ],
)
def test_wrong_completions_are_named(singles: Callable[[str], Path], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(singles("sd1"), **arguments)


def test_parts_of_the_wrong_kind_are_named(singles: Callable[[str], Path], tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in LORA.items()}, lora)
    with pytest.raises(CheckpointError, match=r"lora.safetensors is a LoRA, not a VAE"):
        load_checkpoint(singles("sd1"), vae=lora)
    with pytest.raises(CheckpointError, match=r"lora.safetensors is a LoRA, and holds no text encoder"):
        load_checkpoint(singles("sd1"), text_encoder=lora)
    with pytest.raises(CheckpointError, match="attends to vectors of 64 where the text encoder gives 1024"):
        load_checkpoint(singles("sd1"), text_encoder=singles("sd2"))


def test_what_a_single_file_cannot_tell_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model, path = tiny(NAMES["sd1"]), tmp_path / "model.safetensors"
    heads = Network(replace(model.unet.config, heads=(4, 4, 4)))
    wrong = {
        "not CLIP's": load_checkpoint(tiny_checkpoint),
        r"heads is \(4, 4, 4\) \(it reads as \(8, 8, 8\)\)": replace(model, unet=heads),
        "beta_end is 0.5": replace(model, scheduler_config={"_class_name": "DDIMScheduler", "beta_end": 0.5}),
        "predicts 'sample'": replace(model, scheduler_config={"prediction_type": "sample"}),
    }
    for message, checkpoint in wrong.items():
        with pytest.raises(ValueError, match=message):
            save_single_file(path, checkpoint)
    spoiled = copy.deepcopy(model.unet)
    with torch.no_grad():
        spoiled.get_parameter("conv_in.bias")[0] = torch.inf
    with pytest.raises(ValueError, match=r"unet: conv_in.bias is not finite in torch.float16"):
        save_single_file(path, replace(model, unet=spoiled), dtype=torch.float16)
    assert not list(tmp_path.iterdir())


CONTENTS = {
    "an empty file": (b"", "is truncated or corrupt: it is empty"),
    "a pickle": (pickle.dumps({"a": 1}, protocol=4), r"it is a pickle file \(.ckpt\) under a wrong name"),
    "a pickle of torch": (b"PK\x03\x04" + bytes(99), "it is a pickle file"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "it is an image"),
    "a web page": (b"<!DOCTYPE html>" + bytes(99), "it is a web page, not weights"),
    "a header that is too long": ((2**62).to_bytes(8, "little") + bytes(99), "is truncated or corrupt"),
}


@pytest.mark.parametrize("part", ["model", "vae", "text_encoder"])
@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_something_else_is_named_wherever_it_is_given(
    tmp_path: Path, singles: Callable[[str], Path], name: str, part: str
) -> None:
    content, message = CONTENTS[name]
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    given: dict[str, Any] = {} if part == "model" else {part: path}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path if part == "model" else singles("sd1"), **given)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_pickle_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a.ckpt is truncated or corrupt: it is empty"):
        load_checkpoint(tmp_path / "a.ckpt", allow_pickle=True)
