"""What a LoRA file is asked before it is used, strengths, and which networks are read again."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint, CheckpointError, load_checkpoint, load_lora, save_checkpoint
from genpipe.checkpoints.lora import lora_family
from genpipe.checkpoints.tensors import Safetensors
from genpipe.models.cpu.forms import Forms
from genpipe.models.prepare import prepare
from genpipe.models.unet import UNet
from tests.checkpoints.lora_files import dotted, kohya
from tests.conftest import tiny_parts

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA_Q = f"lora_unet_{Q.replace('.', '_')}"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def lora(tmp_path: Path, model: Checkpoint) -> Path:
    save_file(kohya(model).tensors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def saved(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file(tensors, path / "lora.safetensors", metadata=metadata)
    return path / "lora.safetensors"


def factors(name: str, inner: int, out: int, rank: int = 2) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.zeros(rank, inner), f"{name}.lora_up.weight": torch.zeros(out, rank)}


@pytest.mark.parametrize("strength", [math.nan, math.inf, 1e9, -101, "1", None])
@pytest.mark.parametrize("text", [False, True])
def test_strengths_out_of_their_range_are_refused(model: Checkpoint, lora: Path, strength: Any, text: bool) -> None:
    if text and strength is None:
        pytest.skip("None is the U-Net's")
    arguments: dict[str, Any] = {"text_strength": strength} if text else {"strength": strength}
    with pytest.raises(ValueError, match=r"the strength .* of .*style\.safetensors is out of range: -100 to 100"):
        load_lora(lora, model, **arguments)


def test_strengths_are_per_network_and_linear(model: Checkpoint, lora: Path) -> None:
    def deltas(*patches: Any) -> dict[str, Tensor]:
        patched = model.with_patches(patches).networks
        return {
            f"{part}.{key}": (tensor - model.networks[part].state_dict()[key])
            for part, network in patched.items()
            for key, tensor in network.state_dict().items()
        }

    whole = deltas(load_lora(lora, model))
    for strength, text in ((0.5, -1.0), (2.0, 0.0), (0.0, 1.0)):
        found = deltas(load_lora(lora, model, strength, text_strength=text))
        for key, delta in found.items():
            factor = strength if key.startswith("unet.") else text
            assert torch.allclose(delta, factor * whole[key], atol=2e-6), key
    twice = deltas(load_lora(lora, model, 0.25), load_lora(lora, model, 0.75))
    assert all(torch.allclose(delta, whole[key], atol=2e-6) for key, delta in twice.items())


def test_only_networks_that_change_are_read_again(model: Checkpoint, lora: Path, tmp_path: Path) -> None:
    first = model.with_patches([load_lora(lora, model, 0.5)])
    assert first.vae is model.vae and first.unet is not model.unet
    assert first.text_encoders[0] is not model.text_encoders[0]
    same = first.with_patches([load_lora(lora, first, 0.5)])
    assert same.unet is first.unet and same.text_encoders == first.text_encoders
    without_text = first.with_patches([load_lora(lora, first, 0.5, text_strength=0)])
    assert without_text.unet is not first.unet and without_text.text_encoders[0] is not first.text_encoders[0]
    other = without_text.with_patches([load_lora(lora, first, 0.25, text_strength=0)])
    assert other.text_encoders[0] is without_text.text_encoders[0] and other.unet is not without_text.unet
    none = model.with_patches([load_lora(lora, model, 0)])
    assert none.unet is model.unet and none.text_encoders == model.text_encoders
    # Another file of the same name is another LoRA.
    before, again = load_lora(lora, model), load_lora(lora, model)
    save_file({key: tensor * 2 for key, tensor in load_file(lora).items()}, lora)
    after = load_lora(lora, model)
    assert before == again and before != after and len({before, after}) == 2
    with pytest.raises(ValueError, match="was not read from files"):
        replace(model, stored={}).with_patches([after])


def test_networks_that_are_prepared_for_drawing_take_it_too(tiny_checkpoint: Path, lora: Path) -> None:
    plain, used = load_checkpoint(tiny_checkpoint), load_checkpoint(tiny_checkpoint)
    forms = Forms(phases=True)
    for network in used.networks.values():
        prepare(network, device=torch.device("cpu"), dtype=torch.bfloat16, forms=forms)
    assert used.unet.state_dict().keys() != plain.unet.state_dict().keys()
    patched, expected = (each.with_patches([load_lora(lora, each)]) for each in (used, plain))
    assert patched.vae is used.vae
    for own, other in zip(patched.networks.values(), expected.networks.values(), strict=True):
        if own is not used.vae:
            assert all(torch.equal(tensor, own.state_dict()[key]) for key, tensor in other.state_dict().items())


def test_a_low_memory_copy_is_patched_too(model: Checkpoint, lora: Path) -> None:
    patched = model.with_patches([load_lora(lora, model)])
    again = patched.read_again(patched.text_encoders[0])
    expected = patched.text_encoders[0].state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())


def test_peft_says_its_alpha_in_the_metadata(model: Checkpoint, tmp_path: Path) -> None:
    file = dotted(model, ".lora_A.weight", ".lora_B.weight", only=lambda t: t.part == "unet")
    config = {"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {Q.removeprefix("down_blocks."): 12}}
    for more, factor in (({}, 1.0), ({"unet.use_rslora": True}, math.sqrt(3))):
        path = saved(tmp_path, file.tensors, lora_adapter_metadata=json.dumps({**config, **more}))
        unet = model.with_patches([load_lora(path, model)]).unet
        for name, tensor in model.unet.state_dict().items():
            expected = file.expected.get(f"unet.{name}", tensor) - tensor
            scale = factor * (4 if name == "down.0.transformers.0.blocks.0.attention1.query.weight" else 2)
            assert torch.allclose(unet.state_dict()[name] - tensor, scale * expected, atol=1e-5), name
    with pytest.raises(CheckpointError, match="lora_adapter_metadata cannot be used"):
        load_lora(saved(tmp_path, file.tensors, lora_adapter_metadata='{"unet.lora_alpha": "x"}'), model)


def test_a_change_for_four_channels_fits_an_inpainting_network(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts["unet"] = UNet(replace(parts["unet"].config, in_channels=9))
    save_checkpoint(tmp_path / "model", **parts)
    model = load_checkpoint(tmp_path / "model")
    diff = torch.randn(16, 4, 3, 3)
    path = saved(tmp_path, {"lora_unet_conv_in.diff": diff})
    delta = model.with_patches([load_lora(path, model)]).unet.conv_in.weight - model.unet.conv_in.weight
    assert torch.allclose(delta[:, :4], diff, atol=1e-6) and not delta[:, 4:].any()


CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
ODD: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "keys that fit nothing": (
        lambda: {**factors(KOHYA_Q, 16, 16), **factors("lora_unet_mid_block_nothing", 4, 4)},
        "does not fit .*: no module of Stable Diffusion 1.x takes lora_unet_mid_block_nothing.lora_down.weight, ",
    ),
    "one odd key": (
        lambda: {**factors(KOHYA_Q, 16, 16), f"{KOHYA_Q}.surprise": torch.zeros(1)},
        f"takes {KOHYA_Q}.surprise",
    ),
    "for Stable Diffusion XL": (
        lambda: factors(CROSS, 2048, 64),
        "is a LoRA for Stable Diffusion XL, and .* is Stable",
    ),
    "for Stable Diffusion 2": (lambda: factors(CROSS, 1024, 64), "is a LoRA for Stable Diffusion 2.x, and"),
    "for the encoders of XL": (
        lambda: factors("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, 5120),
        "is a LoRA for Stable Diffusion XL, and",
    ),
    "for FLUX": (
        lambda: factors("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072),
        r"is a LoRA for a transformer \(FLUX or another\), and",
    ),
    "rank 0": (lambda: factors(KOHYA_Q, 16, 16, rank=0), "its rank is 0"),
    "factors of two ranks": (
        lambda: {f"{KOHYA_Q}.lora_down.weight": torch.zeros(2, 16), f"{KOHYA_Q}.lora_up.weight": torch.zeros(16, 3)},
        r"down \(2, 16\), up \(16, 3\) do not make a change of the model's weight, \(16, 16\)",
    ),
    "another width": (lambda: factors(KOHYA_Q, 24, 16), r"do not make a change of the model's weight, \(16, 16\)"),
    "one factor": (lambda: {f"{KOHYA_Q}.lora_down.weight": torch.zeros(2, 16)}, "the tensors down do not go together"),
    "two formats of one": (
        lambda: {**factors(KOHYA_Q, 16, 16), f"{KOHYA_Q}.diff": torch.zeros(16, 16)},
        "the tensors diff, down, up do not go together",
    ),
    "alpha of nothing": (lambda: {f"{KOHYA_Q}.alpha": torch.tensor(1.0)}, "the tensors alpha do not go together"),
    "alpha not a number": (
        lambda: {**factors(KOHYA_Q, 16, 16), f"{KOHYA_Q}.alpha": torch.tensor(math.nan)},
        "its alpha is nan",
    ),
    "alpha of two": (
        lambda: {**factors(KOHYA_Q, 16, 16), f"{KOHYA_Q}.alpha": torch.ones(2)},
        r"its alpha is of shape \(2",
    ),
    "a bias where there is none": (lambda: {f"{KOHYA_Q}.diff_b": torch.zeros(16)}, "the model has no bias there"),
    "integers": (
        lambda: {key: tensor.int() for key, tensor in factors(KOHYA_Q, 16, 16).items()},
        "it is stored as I32",
    ),
    "Kronecker factors of another size": (
        lambda: {f"{KOHYA_Q}.lokr_w1": torch.zeros(2, 2), f"{KOHYA_Q}.lokr_w2": torch.zeros(4, 8)},
        "do not make a change",
    ),
    "Hadamard factors of two sizes": (
        lambda: {
            f"{KOHYA_Q}.hada_w{n}_{x}": torch.zeros(*size)
            for n, x, size in ((1, "a", (16, 2)), (1, "b", (2, 16)), (2, "a", (8, 2)), (2, "b", (2, 16)))
        },
        "do not make a change",
    ),
    "sizes of another width": (
        lambda: {**factors(KOHYA_Q, 16, 16), f"{KOHYA_Q}.dora_scale": torch.ones(5, 1)},
        "do not make a change",
    ),
    "OFT": (lambda: {f"{KOHYA_Q}.oft_blocks": torch.zeros(4, 4, 4)}, f"takes {KOHYA_Q}.oft_blocks: it is OFT, which"),
    "IA3": (lambda: {f"{KOHYA_Q}.weight": torch.zeros(16), f"{KOHYA_Q}.on_input": torch.zeros(1)}, "it is IA³, which"),
    "GLoRA": (lambda: {f"{KOHYA_Q}.a1.weight": torch.zeros(4, 16)}, "it is GLoRA, which genpipe does not apply"),
    "a VAE": (lambda: {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, "is a VAE, not a LoRA"),
}


@pytest.mark.parametrize("name", ODD)
def test_files_that_do_not_fit_get_one_clear_line(tmp_path: Path, model: Checkpoint, name: str) -> None:
    make, message = ODD[name]
    path = saved(tmp_path, make())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_lora(path, model)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_version_1_text_encoders_lora_is_not_taken_for_the_first_of_xl(
    tmp_path: Path, tiny_xl_checkpoint: Path
) -> None:
    path = saved(tmp_path, factors("lora_te_text_model_encoder_layers_0_mlp_fc1", 32, 64))
    with pytest.raises(CheckpointError, match="no module of Stable Diffusion XL takes lora_te_text"):
        load_lora(path, load_checkpoint(tiny_xl_checkpoint))


def test_numbers_that_are_not_finite_are_named(tmp_path: Path, model: Checkpoint) -> None:
    tensors = factors(KOHYA_Q, 16, 16)
    tensors[f"{KOHYA_Q}.lora_up.weight"][0, 0] = torch.inf
    with pytest.raises(CheckpointError, match=rf"lora.safetensors: the tensor {KOHYA_Q}.lora_up.weight is not finite"):
        model.with_patches([load_lora(saved(tmp_path, tensors), model)])


@pytest.mark.parametrize("name", ["missing.safetensors", "", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, model: Checkpoint, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the LoRA .* does not exist"):
        load_lora(tmp_path / name, model)


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        (factors(CROSS, 768, 320), {}, "sd1"),
        (factors(CROSS, 2048, 640), {}, "sdxl"),
        ({f"unet.{Q.replace('attn1.to_q', 'attn2.processor.to_v')}_lora.down.weight": torch.zeros(4, 1024)}, {}, "sd2"),
        (factors("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, 3072), {}, "sd1"),
        (factors("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, 3072), {}, "sdxl"),
        (factors("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, 1024), {}, "sd2"),
        (factors(KOHYA_Q, 320, 320), {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        (factors(KOHYA_Q, 320, 320), {"ss_base_model_version": "sd_v1"}, "sd1"),
        (factors(KOHYA_Q, 320, 320), {}, None),
    ],
)
def test_the_family_that_a_lora_is_for(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], expected: str | None
) -> None:
    family = lora_family(Safetensors(saved(tmp_path, tensors, **metadata)))
    assert (family and family.name) == expected
