"""Loading reads what diffusers and transformers wrote in any year, and says in one line why it cannot."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from genpipe.models.finite import nonfinite_weights

Tensors = Callable[[Checkpoint], dict[str, Tensor]]

PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
LEGACY = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("text_model."): tensor for key, tensor in state.items()}


def with_position_ids(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "text_model." if any(key.startswith("text_model.") for key in state) else ""
    return {**state, f"{prefix}embeddings.position_ids": torch.arange(16)[None]}


def legacy_names(state: dict[str, Tensor], *, conv: bool = False) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        for new, old in LEGACY.items():
            if ".attentions." in key and new in key:
                key = key.replace(new, old)
                tensor = tensor[..., None, None] if conv and tensor.ndim == 2 else tensor
        renamed[key] = tensor.contiguous()
    return renamed


def old_hub_files(edited: Any) -> None:
    """As the first Stable Diffusion 1 folders: old keys, old configs, a safety checker that is not there."""
    edited.edit_weights("text_encoder", with_position_ids)
    edited.edit_json("text_encoder/config.json", eos_token_id=2, bos_token_id=0, pad_token_id=1)
    edited.edit_weights("vae", lambda state: legacy_names(state, conv=True))
    edited.edit_json("vae/config.json", **dict.fromkeys(("scaling_factor", "shift_factor", "use_quant_conv")))
    new_keys = ("use_linear_projection", "upcast_attention", "only_cross_attention", "transformer_layers_per_block")
    edited.edit_json("unet/config.json", layers_per_block=1, **dict.fromkeys(new_keys))
    edited.write_json("scheduler/scheduler_config.json", PNDM)
    edited.edit_json(
        "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
        scheduler=["diffusers", "PNDMScheduler"],
    )


AGED: dict[str, Callable[[Any], object]] = {
    "text encoder without its prefix": lambda e: e.edit_weights("text_encoder", without_prefix),
    "position ids": lambda e: e.edit_weights("text_encoder", with_position_ids),
    "position ids without the prefix": lambda e: e.edit_weights(
        "text_encoder", lambda s: with_position_ids(without_prefix(s))
    ),
    "legacy attention names": lambda e: e.edit_weights("vae", legacy_names),
    "legacy attention as convolutions": lambda e: e.edit_weights("vae", lambda s: legacy_names(s, conv=True)),
    "shards": lambda e: [e.shard(part) for part in ("unet", "vae", "text_encoder")],
    "the first hub folders": old_hub_files,
}


@pytest.mark.parametrize("name", AGED)
def test_files_of_every_age_give_the_same_weights(
    tiny_checkpoint: Path, edited: Any, tensors: Tensors, name: str
) -> None:
    AGED[name](edited)
    expected, loaded = tensors(load_checkpoint(tiny_checkpoint)), tensors(load_checkpoint(edited.root))
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_scheduler_and_defaults_come_along(edited: Any) -> None:
    assert load_checkpoint(edited.root).defaults == {}
    old_hub_files(edited)
    edited.write_json("genpipe.json", {"steps": 4})
    checkpoint = load_checkpoint(str(edited.root))
    assert checkpoint.scheduler_config == PNDM and checkpoint.defaults == {"steps": 4}
    assert checkpoint.source == str(edited.root)
    edited.write_json("scheduler/scheduler_config.json", {"beta_start": 0.1})
    assert load_checkpoint(edited.root).scheduler_config == {"beta_start": 0.1, "_class_name": "PNDMScheduler"}


def test_every_tensor_has_memory_and_the_dtype_asked_for(tiny_checkpoint: Path, tensors: Tensors) -> None:
    for dtype in (None, torch.float32, torch.float16, torch.bfloat16):
        checkpoint = load_checkpoint(tiny_checkpoint, dtype=dtype)
        assert {t.dtype for t in tensors(checkpoint).values()} == {dtype or torch.float32}
        for network in checkpoint.networks.values():
            assert not any(t.is_meta for t in [*network.parameters(), *network.buffers()])
        assert torch.isfinite(checkpoint.text_encoders[0](torch.zeros(1, 16, dtype=torch.long)).context).all()


@pytest.mark.parametrize("shards", [False, True])
def test_the_fp16_variant_is_read_where_there_is_one(edited: Any, tensors: Tensors, shards: bool) -> None:
    state = load_file(edited.weights("unet"))
    half = {key: tensor.half() for key, tensor in state.items()}
    if shards:
        save_file(half, edited.weights("unet"))
        edited.shard("unet", variant="fp16")
        save_file(state, edited.weights("unet"))
    else:
        save_file(half, edited.root / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    dtypes = {key.split(".")[0]: t.dtype for key, t in tensors(load_checkpoint(edited.root, variant="fp16")).items()}
    assert dtypes == {"unet": torch.float16, "vae": torch.float32, "text_encoder": torch.float32}
    assert load_checkpoint(edited.root).unet.conv_in.weight.dtype == torch.float32
    edited.weights("vae").rename(edited.root / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"vae holds only the variant 'fp16': pass it as `variant`"):
        load_checkpoint(edited.root)


def test_writing_to_loaded_weights_leaves_the_file_alone(edited: Any) -> None:
    before = edited.weights("unet").read_bytes()
    unet = load_checkpoint(edited.root).unet
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.fill_(1.0)
    assert edited.weights("unet").read_bytes() == before


def test_loaded_weights_outlive_the_file(edited: Any, tensors: Tensors) -> None:
    loaded = tensors(load_checkpoint(edited.root))
    expected = {key: tensor.clone() for key, tensor in tensors(load_checkpoint(edited.root)).items()}
    shutil.rmtree(edited.root)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_nonfinite_weights_are_named(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert nonfinite_weights(checkpoint.unet) == []
    with torch.no_grad():
        checkpoint.unet.get_parameter("conv_in.bias")[1] = float("nan")
        checkpoint.unet.conv_out.weight[0, 0, 0, 0] = float("inf")
    assert nonfinite_weights(checkpoint.unet) == ["conv_in.bias", "conv_out.weight"]


def test_one_error_lists_everything_that_does_not_fit(edited: Any) -> None:
    def spoil(state: dict[str, Tensor]) -> dict[str, Tensor]:
        del state["conv_in.bias"], state["down_blocks.0.attentions.0.proj_in.weight"]
        state |= {
            "ema.decay": torch.zeros(1),
            "conv_out.bias": torch.zeros(7),
            "conv_norm_out.bias": torch.zeros(16).int(),
        }
        return state

    edited.edit_weights("unet", spoil)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(edited.root)
    assert str(caught.value) == (
        f"{edited.weights('unet')} does not fit its config.json; "
        "missing: conv_in.bias, down_blocks.0.attentions.0.proj_in.weight; unexpected: ema.decay; "
        "wrong shape: conv_norm_out.bias is stored as I32, conv_out.bias is (7,), not (4,)"
    )


def test_a_tensor_under_two_names_is_unexpected(edited: Any) -> None:
    edited.edit_weights("vae", lambda state: {k: t.clone() for k, t in [*legacy_names(state).items(), *state.items()]})
    with pytest.raises(CheckpointError, match=r"unexpected: .*\.to_k\.weight"):
        load_checkpoint(edited.root)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def only_pickles(edited: Any) -> None:
    edited.weights("unet").rename(edited.root / "unet" / "diffusion_pytorch_model.bin")


def lost_shard(edited: Any) -> None:
    edited.shard("unet")
    (edited.root / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def outside_shard(edited: Any) -> None:
    edited.shard("unet")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    edited.write_json(index, {"weight_map": {"conv_in.bias": "../vae/diffusion_pytorch_model.safetensors"}})


def conv_text(edited: Any) -> None:
    edited.edit_weights("text_encoder", lambda s: {k: t[..., None, None] if t.ndim == 2 else t for k, t in s.items()})


MISTAKES: dict[str, tuple[Callable[[Any], object], str]] = {
    "no index": (lambda e: (e.root / "model_index.json").unlink(), "lacks model_index.json"),
    "index not JSON": (
        lambda e: (e.root / "model_index.json").write_text("{"),
        "model_index.json cannot be used: it is not JSON: Expecting",
    ),
    "index not an object": (
        lambda e: (e.root / "model_index.json").write_text("[]"),
        r"it must hold a JSON object, not \[\]",
    ),
    "other parts": (
        lambda e: e.edit_json(
            "model_index.json",
            _class_name="SomePipeline",
            unet=[None, None],
            transformer=["diffusers", "SomeTransformer2DModel"],
        ),
        r"cannot run SomePipeline: .*transformer \(SomeTransformer2DModel\)",
    ),
    "a second text encoder without its tokenizer": (
        lambda e: e.edit_json("model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
        "the checkpoint lacks a tokenizer_2",
    ),
    "no U-Net in the index": (
        lambda e: e.edit_json("model_index.json", unet=[None, None]),
        "the checkpoint lacks a unet",
    ),
    "no VAE folder": (lambda e: shutil.rmtree(e.root / "vae"), "lacks vae/config.json"),
    "no tokenizer": (lambda e: shutil.rmtree(e.root / "tokenizer"), "lacks the tokenizer's files"),
    "half a tokenizer": (lambda e: (e.root / "tokenizer" / "merges.txt").unlink(), "holds neither tokenizer.json nor"),
    "no weights": (lambda e: e.weights("vae").unlink(), "lacks the weights vae/diffusion_pytorch_model.safetensors"),
    "only pickles": (only_pickles, r"only pickle files \(diffusion_pytorch_model.bin\), which genpipe does not load"),
    "other VAE": (
        lambda e: e.edit_json("vae/config.json", _class_name="AutoencoderTiny"),
        "cannot run 'AutoencoderTiny'",
    ),
    "other VAE in the index": (
        lambda e: e.edit_json("model_index.json", vae=["diffusers", "AsymmetricAutoencoderKL"]),
        "its vae is AsymmetricAutoencoderKL",
    ),
    "other U-Net": (
        lambda e: e.edit_json("unet/config.json", class_embed_type="timestep"),
        "unet/config.json cannot be used: class_embed_type must be null or \"projection\", not 'timestep'",
    ),
    "no heads": (lambda e: e.edit_json("unet/config.json", attention_head_dim=0), "unet/config.json cannot be used"),
    "odd groups": (lambda e: e.edit_json("vae/config.json", norm_num_groups=3), "vae/config.json cannot be used"),
    "two layers": (
        lambda e: e.edit_json("unet/config.json", layers_per_block="two"),
        "unet/config.json cannot be used",
    ),
    "no levels": (lambda e: e.edit_json("vae/config.json", block_out_channels=[]), "vae/config.json cannot be used"),
    "odd channels": (
        lambda e: e.edit_json("unet/config.json", in_channels=7),
        "takes 7 channels and gives 4 where the VAE has 4",
    ),
    "SDXL U-Net": (
        lambda e: e.edit_json(
            "unet/config.json",
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40,
        ),
        "takes pooled text, which its last text encoder does not project",
    ),
    "other context": (
        lambda e: e.edit_json("unet/config.json", cross_attention_dim=64),
        "attends to vectors of 64 where the text encoder gives 32",
    ),
    "large tokenizer": (
        lambda e: e.edit_json("text_encoder/config.json", vocab_size=100),
        r"tokenizer has \d+ tokens where the text encoder knows 100",
    ),
    "truncated": (lambda e: truncate(e.weights("unet")), "truncated or corrupt"),
    "empty": (lambda e: e.weights("unet").write_bytes(b""), "truncated or corrupt"),
    "corrupt": (lambda e: e.weights("unet").write_bytes(b"\xff" * 1000), "truncated or corrupt"),
    "LFS pointer": (
        lambda e: e.weights("unet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "run `git lfs pull`",
    ),
    "lost shard": (lost_shard, "lists 'diffusion_pytorch_model-00002-of-00002.safetensors', which is not there"),
    "shard outside": (outside_shard, "lists '../vae/diffusion_pytorch_model.safetensors', which is not there"),
    "index of shards without a map": (
        lambda e: [e.shard("vae"), e.write_json("vae/diffusion_pytorch_model.safetensors.index.json", {})],
        "index.json cannot be used: it lacks weight_map",
    ),
    "empty index of shards": (
        lambda e: [
            e.shard("vae"),
            e.write_json("vae/diffusion_pytorch_model.safetensors.index.json", {"weight_map": {}}),
        ],
        "weight_map must be an object",
    ),
    "shapes that only aliases may have": (
        conv_text,
        r"wrong shape: .*position_embedding.weight is \(16, 32, 1, 1\), not \(16, 32\)",
    ),
    "wider config": (lambda e: e.edit_json("vae/config.json", block_out_channels=[8, 16, 24]), "wrong shape"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_checkpoints_get_one_clear_line(edited: Any, name: str) -> None:
    spoil, message = MISTAKES[name]
    spoil(edited)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(edited.root)
    assert str(edited.root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["./missing", "~/no such folder", "/missing/model", "a/b/c", "model", "", "ü/b", "a/..", "a/b.", Path("a/b")],
)
def test_paths_that_do_not_exist_get_one_clear_line(path: str | Path) -> None:
    with pytest.raises(CheckpointError, match=rf"the folder '{re.escape(str(path))}' does not exist .*'owner/name'"):
        load_checkpoint(path)


def test_a_file_is_not_a_checkpoint(edited: Any) -> None:
    with pytest.raises(CheckpointError, match="is a VAE, not a model"):
        load_checkpoint(edited.weights("vae"))
    with pytest.raises(CheckpointError, match="has no weights of the variant 'fp16'"):
        load_checkpoint(edited.root, variant="fp16")
