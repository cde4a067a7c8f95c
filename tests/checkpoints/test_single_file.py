"""Single files: what diffusers reads of ours, and what we read of the layouts that the originals and others have."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint, CheckpointError, layout, load_checkpoint, save_checkpoint
from genpipe.checkpoints.families import Family
from genpipe.checkpoints.single_file_saving import save_single_file
from genpipe.models.unet import UNet
from tests.checkpoints.tiny_families import (
    FIRST_TEXT,
    NAMES,
    SD1_TEXT,
    SD2_TEXT,
    SECOND_TEXT,
    UNET,
    Change,
    marked,
    only,
    tiny,
)

READERS: dict[str, Any] = {
    "sd1": StableDiffusionPipeline,
    "sd2": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sdxl-refiner": StableDiffusionXLImg2ImgPipeline,
}


def save_folder(directory: Path, model: Checkpoint) -> None:
    parts = ("text_encoders", "tokenizers", "unet", "vae")
    config = {**model.scheduler_config, "prediction_type": "epsilon"}
    save_checkpoint(directory, **{name: getattr(model, name) for name in parts}, scheduler_config=config)


@pytest.fixture(scope="module", params=list(NAMES))
def family(request: pytest.FixtureRequest) -> Family:
    return NAMES[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny checkpoint of the family."""
    directory = tmp_path_factory.mktemp(family.name) / "folder"
    save_folder(directory, tiny(family))
    return directory


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    """The same checkpoint as a single file."""
    path = folder.parent / "model.safetensors"
    save_single_file(path, load_checkpoint(folder))
    return path


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {f"{p}.{k}": t for p, network in checkpoint.networks.items() for k, t in network.state_dict().items()}


def test_folder_and_single_file_are_the_same_model(folder: Path, single: Path, family: Family) -> None:
    ours, theirs = load_checkpoint(single), load_checkpoint(folder)
    assert ours.family == theirs.family and ours.family.name == family.name
    ours_weights, theirs_weights = weights(ours), weights(theirs)
    assert ours_weights.keys() == theirs_weights.keys()
    assert all(torch.equal(ours_weights[key], theirs_weights[key]) for key in theirs_weights)
    for own, other in zip(ours.networks.values(), theirs.networks.values(), strict=True):
        assert own.config == other.config
    assert ours.scheduler_config == theirs.scheduler_config
    assert ours.zero_empty_negative == theirs.zero_empty_negative
    texts = ["a photo of a cat!", "Ünïcode  and «quotes», 3 cats"]
    assert [t(texts) for t in ours.tokenizers] == [t(texts) for t in theirs.tokenizers]


def test_diffusers_reads_our_file_to_equal_weights(folder: Path, single: Path, family: Family) -> None:
    theirs = READERS[family.name].from_single_file(str(single), config=str(folder), safety_checker=None)
    for part, ours in load_checkpoint(folder).networks.items():
        names, state = load_checkpoint(folder).stored[part].names, ours.state_dict()
        their = {names.ours(key): tensor for key, tensor in getattr(theirs, part).state_dict().items()}
        assert their.keys() == state.keys()
        assert all(torch.equal(their[name], tensor.float()) for name, tensor in state.items())


def fp8(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: tensor.to(dtype) if key.startswith(UNET) else tensor for key, tensor in state.items()}


def with_extras(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What training leaves in a file."""
    ema = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": t + 1 for key, t in state.items() if UNET in key}
    extras = {name: torch.ones(1000) for name in ("betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "logvar")}
    extras |= {
        "model_ema.decay": torch.ones(1),
        "global_step": torch.ones(1),
        "first_stage_model.loss.logvar": torch.ones(1),
    }
    return {**state, **ema, **extras, "cond_stage_model.logit_scale": torch.ones(1)}


def with_unused_layer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Stable Diffusion 2's files are: with the last layer and the projection, which nothing reads."""
    last = {key.replace("resblocks.1.", "resblocks.2."): t + 1 for key, t in state.items() if "resblocks.1." in key}
    extras = {"text_projection": torch.ones(1024, 1024), "logit_scale": torch.ones(1), "attn_mask": torch.ones(77, 77)}
    return {**state, **last, **{SD2_TEXT + key: value for key, value in extras.items()}}


def in_sgm_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace(SD2_TEXT, "conditioner.embedders.0.model."): tensor for key, tensor in state.items()}


def with_unused_projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    extras = {"text_projection.weight": torch.ones(64, 64), "logit_scale": torch.ones(1)}
    extras["text_model.embeddings.position_ids"] = torch.arange(77.0)[None] + 1e-3
    return {**state, **{FIRST_TEXT + key: value for key, value in extras.items()}}


def projection_as(name: str) -> Change:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        projection = state.pop(f"{SECOND_TEXT}text_projection").T.contiguous()
        return {**state, SECOND_TEXT + name: projection}

    return change


def without_text_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace(f"{SD1_TEXT}text_model.", SD1_TEXT): tensor for key, tensor in state.items()}


def with_position_ids(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, f"{SD1_TEXT}text_model.embeddings.position_ids": torch.arange(77)[None]}


# Files that hold the same model otherwise, by the family that such files are of.
FORMS: dict[str, tuple[str, Change]] = {
    "left by training": ("sd1", with_extras),
    "position ids": ("sd1", with_position_ids),
    "text encoder without text_model": ("sd1", without_text_model),
    "VAE under vae.": ("sd1", lambda s: {k.replace("first_stage_model.", "vae."): t for k, t in s.items()}),
    "a layer that nothing reads": ("sd2", with_unused_layer),
    "Stable Diffusion 2 in sgm's layout": ("sd2", in_sgm_layout),
    "a projection that nothing reads": ("sdxl", with_unused_projection),
    "projection the right way round": ("sdxl", projection_as("text_projection.weight")),
    "Playground's projection": ("sdxl", projection_as("text_projection.weight.weight")),
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_every_form_are_the_same_model(
    tmp_path: Path, singles: Callable[[str], Path], name: str, recwarn: pytest.WarningsRecorder
) -> None:
    family, change = FORMS[name]
    save_file(change(load_file(singles(family))), tmp_path / "other.safetensors")
    ours, expected = weights(load_checkpoint(tmp_path / "other.safetensors")), weights(load_checkpoint(singles(family)))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())
    assert not recwarn.list


@pytest.mark.parametrize("nested", [0, 1, 2])
def test_a_pickle_is_read_only_where_it_is_allowed(tmp_path: Path, singles: Callable[[str], Path], nested: int) -> None:
    content: Any = load_file(singles("sd1"))
    for _ in range(nested):
        content = {"state_dict": content, "global_step": 7, "epoch": 1}
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"model.ckpt is a pickle file, .* pass allow_pickle=True \(--allow-pickle\)"
    ):
        load_checkpoint(path)
    checkpoint = load_checkpoint(path, allow_pickle=True)
    expected = weights(load_checkpoint(singles("sd1")))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(checkpoint).items())
    assert torch.equal(
        checkpoint.read_again(checkpoint.unet).get_parameter("conv_in.bias"), expected["unet.conv_in.bias"]
    )


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_code_in_a_pickle_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="holds Python objects that only running its code could build") as caught:
        load_checkpoint(tmp_path / "evil.ckpt", allow_pickle=True)
    assert "run" not in capsys.readouterr().out and "\n" not in str(caught.value)
    (tmp_path / "torn.ckpt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match=r"torn\.ckpt"):
        load_checkpoint(tmp_path / "torn.ckpt", allow_pickle=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_every_type_are_read(tmp_path: Path, singles: Callable[[str], Path], dtype: torch.dtype) -> None:
    state = fp8(load_file(singles("sd1")), dtype)
    save_file(state, tmp_path / "other.safetensors")
    checkpoint = load_checkpoint(tmp_path / "other.safetensors")
    names = checkpoint.stored["unet"].names
    for name, tensor in checkpoint.unet.state_dict().items():
        assert tensor.dtype == (torch.float16 if dtype.itemsize == 1 else dtype)
        assert torch.equal(tensor.float(), state[names.theirs(name)].float())
    assert checkpoint.vae.get_parameter("decoder.conv_in.weight").dtype == torch.float32


def test_scaled_fp8_as_comfyui_writes_it(tmp_path: Path, singles: Callable[[str], Path]) -> None:
    plain = load_file(singles("sd1"))
    state, key = dict(plain), f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    scale = plain[f"{key}.weight"].abs().max() / 448
    state |= {
        f"{key}.weight": (plain[f"{key}.weight"] / scale).to(torch.float8_e4m3fn),
        f"{key}.scale_weight": scale,
        f"{key}.scale_input": torch.ones(1),
        f"{UNET}scaled_fp8": torch.zeros(2),
    }
    save_file(state, tmp_path / "scaled.safetensors")
    weight = load_checkpoint(tmp_path / "scaled.safetensors").unet.get_parameter(
        "down.0.transformers.0.blocks.0.attention1.query.weight"
    )
    expected = plain[f"{key}.weight"]
    assert (weight.float() - expected).abs().max() <= expected.abs().max() / 16


@pytest.mark.parametrize(("name", "channels"), [("sd1", 5), ("sd1", 8), ("sd1", 9), ("sdxl", 9)])
def test_networks_with_further_inputs_load(tmp_path: Path, name: str, channels: int) -> None:
    model = tiny(NAMES[name])
    save_single_file(
        tmp_path / "model.safetensors", replace(model, unet=UNet(replace(model.unet.config, in_channels=channels)))
    )
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.unet.config.in_channels == channels and checkpoint.family.name == name


def trained_for_velocity(state: dict[str, Tensor]) -> dict[str, Tensor]:
    key = f"{UNET}output_blocks.8.1.transformer_blocks.0.norm1.bias"
    return {**state, key: torch.linspace(-0.5, 0.5, 64)}


V = {"prediction_type": "v_prediction"}
PREDICTIONS: dict[str, tuple[str, Change, dict[str, str], dict[str, Any]]] = {
    "sd1": ("sd1", marked(), {}, {"prediction_type": "epsilon", "_class_name": "PNDMScheduler"}),
    "sd1 by its marker": ("sd1", marked(v_pred=torch.zeros(0)), {}, V),
    "sd2 base": ("sd2", marked(), {}, {"prediction_type": "epsilon"}),
    "sd2 by its weights": ("sd2", trained_for_velocity, {}, {**V, "_class_name": "DDIMScheduler"}),
    "metadata before weights": (
        "sd2",
        trained_for_velocity,
        {"modelspec.prediction_type": "epsilon"},
        {"prediction_type": "epsilon"},
    ),
    "sdxl": ("sdxl", marked(), {}, {"prediction_type": "epsilon", "_class_name": "EulerDiscreteScheduler"}),
    "sdxl by its marker": ("sdxl", marked(v_pred=torch.zeros(0)), {}, V),
    "sdxl by its metadata": ("sdxl", marked(), {"modelspec.prediction_type": "v"}, V),
    "zero terminal SNR": (
        "sdxl",
        marked(v_pred=torch.zeros(0), ztsnr=torch.zeros(0)),
        {},
        {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_what_a_model_predicts_is_told_by_markers_metadata_or_weights(
    tmp_path: Path, singles: Callable[[str], Path], name: str
) -> None:
    family, change, metadata, expected = PREDICTIONS[name]
    save_file(change(load_file(singles(family))), tmp_path / "model.safetensors", metadata=metadata)
    config = load_checkpoint(tmp_path / "model.safetensors").scheduler_config
    assert {key: config.get(key) for key in expected} == expected
    if family == "sd2":
        size = 96 if expected["prediction_type"] == "v_prediction" else 64
        assert load_checkpoint(tmp_path / "model.safetensors").unet.config.sample_size == size


def test_a_yaml_file_beside_a_checkpoint_has_the_first_say(tmp_path: Path, singles: Callable[[str], Path]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(singles("sd1").read_bytes())
    path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert load_checkpoint(path).scheduler_config["prediction_type"] == "v_prediction"


def test_a_file_without_some_parts_says_what_to_add(tmp_path: Path, singles: Callable[[str], Path]) -> None:
    path = tmp_path / "model.safetensors"
    save_file(only(UNET, SD1_TEXT)(load_file(singles("sd1"))), path)
    with pytest.raises(CheckpointError, match=r"model.safetensors holds no VAE: add one with vae= \(--vae"):
        load_checkpoint(path)
    save_file(only(UNET, "first_stage_model.", FIRST_TEXT)(load_file(singles("sdxl"))), path)
    with pytest.raises(
        CheckpointError, match=r"the 2 text encoders of Stable Diffusion XL: add them with text_encoder="
    ):
        load_checkpoint(path)


def unet_in_diffusers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    model = tiny(NAMES["sdxl"])
    return {layout.UNET.theirs(name): tensor for name, tensor in model.unet.state_dict().items()}


WITHOUT: dict[str, Change] = {
    "under its prefix": only(UNET),
    "bare": only(UNET, strip=UNET),
    "in diffusers' names": unet_in_diffusers_names,
    "in diffusers' names under unet.": lambda s: {f"unet.{k}": t for k, t in unet_in_diffusers_names(s).items()},
}


def check_completed(path: Path, whole: Path, **parts: Any) -> None:
    checkpoint, expected = load_checkpoint(path, **parts), load_checkpoint(whole)
    found, wanted = weights(checkpoint), weights(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert [n.config for n in checkpoint.networks.values()] == [n.config for n in expected.networks.values()]
    again = checkpoint.read_again(checkpoint.vae)
    assert torch.equal(again.get_parameter("decoder.conv_in.bias"), wanted["vae.decoder.conv_in.bias"])


@pytest.mark.parametrize("form", WITHOUT)
def test_a_unet_alone_is_completed_from_a_checkpoint(tmp_path: Path, singles: Callable[[str], Path], form: str) -> None:
    whole, path = singles("sdxl"), tmp_path / "unet.safetensors"
    save_file(WITHOUT[form](load_file(whole)), path)
    check_completed(path, whole, vae=whole, text_encoder=str(whole))


def test_a_unet_alone_is_completed_from_files_and_folders(tmp_path: Path, singles: Callable[[str], Path]) -> None:
    whole, path = singles("sdxl"), tmp_path / "unet.safetensors"
    state, folder = load_file(whole), tmp_path / "folder"
    files = {name: tmp_path / f"{name}.safetensors" for name in ("vae", "second", "first")}
    for prefix, file in zip(("first_stage_model.", SECOND_TEXT, FIRST_TEXT), files.values(), strict=True):
        save_file(only(prefix, strip=prefix)(state), file)
    save_file(only(UNET)(state), path)
    check_completed(path, whole, vae=files["vae"], text_encoder=[files["second"], files["first"]])

    save_folder(folder, load_checkpoint(whole))
    check_completed(path, whole, vae=folder, text_encoder=folder)
    folders = [folder / name for name in ("text_encoder_2", "text_encoder")]
    check_completed(path, whole, vae=folder / "vae", text_encoder=folders)


def test_a_folder_takes_another_vae(tmp_path: Path, singles: Callable[[str], Path], tiny_checkpoint: Path) -> None:
    state = load_file(singles("sd1"))
    save_file(only("first_stage_model.")(state), tmp_path / "vae.safetensors")
    checkpoint = load_checkpoint(tiny_checkpoint, vae=tmp_path / "vae.safetensors")
    assert torch.equal(
        checkpoint.vae.get_parameter("decoder.conv_in.bias"), state["first_stage_model.decoder.conv_in.bias"]
    )
