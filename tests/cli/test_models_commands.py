"""`info FILE`, `models` and `convert`: what files are, where they are, and one form into the other."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint, load_checkpoint
from genpipe.checkpoints.library import VARIABLE
from genpipe.checkpoints.single_file_saving import save_single_file
from genpipe.cli import main
from genpipe.models.unet import UNet
from tests.checkpoints.tiny_families import NAMES, tiny

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file of Stable Diffusion 1."""
    path = tmp_path_factory.mktemp("models") / "dream.safetensors"
    save_single_file(path, tiny(NAMES["sd1"]), dtype=torch.float16)
    return path


def lora(path: Path, *, inner: int = 64, metadata: dict[str, str] | None = None) -> Path:
    generator = torch.Generator("cpu").manual_seed(0)
    tensors = {
        f"{Q}.lora_down.weight": torch.randn(4, inner, generator=generator),
        f"{Q}.lora_up.weight": torch.randn(128, 4, generator=generator),
        f"{Q}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path, metadata=metadata)
    return path


def rows(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[14:] for line in text.splitlines()}


def info(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, str]:
    assert main(["info", str(path), *more]) == 0
    return rows(capsys.readouterr().out)


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {f"{p}.{k}": t for p, network in checkpoint.networks.items() for k, t in network.state_dict().items()}


def test_info_says_what_a_checkpoint_is(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = info(single, capsys)
    digest = hashlib.sha256(single.read_bytes()).hexdigest()
    assert said["is"] == "a checkpoint of Stable Diffusion 1.x" and said["family"] == "sd1"
    assert said["predicts"] == "noise (epsilon)" and said["size"] == "512 x 512"
    assert said["parts"] == "U-Net, text encoder, VAE" and said["takes"] == "latents"
    assert said["weights"].startswith("fp16; ") and said["weights"].endswith(f"{single.stat().st_size / 1e6:,.1f} MB")
    assert said["A1111's hash"] == digest[:10] and said["SHA-256"] == digest
    assert said["made from"] == "stable-diffusion-v1"


def test_info_tells_variants_apart(tmp_path: Path, single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny(NAMES["sdxl"])
    inpainting = replace(
        model,
        unet=UNet(replace(model.unet.config, in_channels=9)),
        scheduler_config={**model.scheduler_config, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    )
    save_single_file(tmp_path / "xl.safetensors", inpainting)
    said = info(tmp_path / "xl.safetensors", capsys)
    assert said["takes"] == "latents, a mask and an image" and said["family"] == "sdxl"
    assert said["predicts"] == "velocity (v_prediction), zero terminal SNR"
    state = load_file(single)
    ema = {f"model_ema.x{index}": torch.zeros(1) for index in range(101)}
    without = {key: tensor for key, tensor in state.items() if not key.startswith("first_stage_model.")}
    save_file({**without, **ema}, tmp_path / "no vae.safetensors")
    said = info(tmp_path / "no vae.safetensors", capsys)
    assert said["lacks"].startswith("VAE: see --vae") and "moving average" in said["also holds"]
    assert said["parts"] == "U-Net, text encoder"


def test_info_says_what_a_lora_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = {"images": {"1girl": 9, "red  hat": 5, "sky": 1}, "more": {"red hat": 9}}
    path = lora(
        tmp_path / "style.safetensors",
        inner=2048,
        metadata={
            "ss_output_name": "my style",
            "ss_sd_model_name": "base.safetensors",
            "ss_tag_frequency": json.dumps(tags),
            "modelspec.trigger_phrase": "in my style",
        },
    )
    said = info(path, capsys)
    assert said["is"] == "a LoRA for Stable Diffusion XL" and said["rank"] == "4"
    assert said["changes"] == "layers: 1 of the U-Net, 0 of the text encoders"
    assert said["title"] == "my style" and said["made from"] == "base.safetensors"
    assert said["triggered by"] == "in my style" and said["trained on"] == "red hat, 1girl, sky"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert said["A1111's hash"] == hashlib.sha256(data[8 + length :]).hexdigest()[:12]


def test_info_says_what_other_files_and_folders_are(
    tmp_path: Path, tiny_xl_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"emb_params": torch.zeros(3, 768)}, tmp_path / "bad.safetensors")
    said = info(tmp_path / "bad.safetensors", capsys)
    assert said["is"] == "a textual inversion for Stable Diffusion 1.x"
    assert said["vectors"] == "3 of 768" and said["word"] == "bad"
    save_file({"control_model.x.weight": torch.zeros(3)}, tmp_path / "control.safetensors")
    assert info(tmp_path / "control.safetensors", capsys)["is"] == "a ControlNet"
    said = info(tiny_xl_checkpoint, capsys)
    assert said["is"] == "a folder of Stable Diffusion XL in the diffusers layout"
    assert said["parts"] == "U-Net, 2 text encoders, VAE"
    torch.save({"emb_params": torch.zeros(2, 768)}, tmp_path / "old.pt")
    assert info(tmp_path / "old.pt", capsys, "--allow-pickle")["is"].startswith("a textual inversion")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"\xff" * 100, b"<html>"])
def test_info_of_a_broken_file_is_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert main(["info", str(tmp_path / "x.safetensors")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "x.safetensors is truncated or corrupt" in said.err and said.err.count("\n") == 1
    assert main(["info", str(tmp_path / "gone.safetensors")]) == 2


def test_models_are_listed_with_their_families(
    tmp_path: Path, single: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for name in ("Stable-diffusion", "Lora"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models" / "Stable-diffusion" / "dream.safetensors").symlink_to(single)
    (tmp_path / "models" / "Stable-diffusion" / "torn.safetensors").touch()
    lora(tmp_path / "models" / "Lora" / "style.safetensors", inner=768)
    assert main(["models", "--model-dir", str(tmp_path)]) == 0
    listed = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert listed == [
        ["lora", "style", "a LoRA for Stable Diffusion 1.x"],
        ["model", "dream", "a checkpoint of Stable Diffusion 1.x"],
        ["model", "torn", "is truncated or corrupt: it is empty"],
    ]
    assert main(["models"]) == 2 and "set GENPIPE_MODELS" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["models", "--model-dir", str(tmp_path / "empty")]) == 2
    assert "there are no models in" in capsys.readouterr().err


def test_a_file_becomes_a_folder_and_a_file_again(
    tmp_path: Path, single: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(single), str(tmp_path / "folder")]) == 0
    assert main(["convert", "folder", str(tmp_path / "again.safetensors"), "--model-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "folder"), str(tmp_path / "again.safetensors")]
    first, last = load_file(single), load_file(tmp_path / "again.safetensors")
    assert first.keys() == last.keys() and all(torch.equal(last[key], tensor) for key, tensor in first.items())
    assert main(["convert", str(single), str(tmp_path / "wide.safetensors"), "--dtype", "fp32"]) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "wide.safetensors").values()} == {torch.float32}


def test_loras_are_merged_in(tmp_path: Path, single: Path) -> None:
    style = lora(tmp_path / "style.safetensors")
    for target in ("merged.safetensors", "merged"):
        assert (
            main(["convert", str(single), str(tmp_path / target), "--lora", f"{style}:0.5", "--lora", str(style)]) == 0
        )
    plain = weights(load_checkpoint(single))
    tensors = load_file(style)
    delta = 1.5 * 0.5 * tensors[f"{Q}.lora_up.weight"] @ tensors[f"{Q}.lora_down.weight"]
    changed = "unet.down.1.transformers.0.blocks.0.attention2.key.weight"
    for target in ("merged.safetensors", "merged"):
        merged = weights(load_checkpoint(tmp_path / target))
        assert [key for key, tensor in merged.items() if not torch.equal(tensor, plain[key])] == [changed]
        # Rounded to fp16 once.
        assert torch.equal(merged[changed], (plain[changed].float() + delta).half()) or torch.allclose(
            merged[changed].float(), plain[changed].float() + delta, rtol=1e-3, atol=1e-4
        )


MISTAKES: dict[str, Callable[[Path, Path], list[str]]] = {
    "does not exist": lambda single, here: ["convert", "./nowhere.safetensors", str(here / "out")],
    "is not a number": lambda single, here: ["convert", str(single), str(here / "out"), "--lora", f"{single}:nan"],
    "is a checkpoint, not a LoRA": lambda single, here: [
        "convert",
        str(single),
        str(here / "out"),
        "--lora",
        str(single),
    ],
    "holds something other than a checkpoint": lambda single, here: ["convert", str(single), str(here)],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(
    tmp_path: Path, single: Path, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").touch()
    assert main(MISTAKES[message](single, tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and (message in said or (message == "is not a number" and "must be a number" in said))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
