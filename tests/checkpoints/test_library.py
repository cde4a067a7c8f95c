"""Models by name, in a folder of models or in another program's installation."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.fingerprint import checkpoint_files, fingerprint
from genpipe.checkpoints.library import VARIABLE, entries, find, model_folders
from genpipe.pipeline.loaded import recorded_options
from genpipe.spec import ModelSpec

A1111 = [
    "models/Stable-diffusion/dream.safetensors",
    "models/Stable-diffusion/old/dream.ckpt",
    "models/Lora/style.safetensors",
    "models/VAE/sharp.safetensors",
    "models/ControlNet/canny.safetensors",
    "embeddings/easynegative.safetensors",
    "extensions/x/models/other.safetensors",
    "outputs/a.png",
]
COMFY = [
    "models/checkpoints/xl/Base.safetensors",
    "models/loras/style.safetensors",
    "models/unet/lightning.safetensors",
    "models/embeddings/a.safetensors",
    "models/clip/l.safetensors",
    "models/upscale_models/4x.safetensors",
    "models/controlnet/depth.safetensors",
    "models/ipadapter/plus.safetensors",
    "models/clip_vision/h.safetensors",
]


def made(root: Path, files: list[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listing(root: Path) -> list[tuple[str, str]]:
    return [(entry.kind, entry.path.relative_to(root).as_posix()) for entry in entries([root])]


def test_installations_of_other_programs_are_understood(tmp_path: Path) -> None:
    assert listing(made(tmp_path / "a", A1111)) == [
        ("control model", "models/ControlNet/canny.safetensors"),
        ("embedding", "embeddings/easynegative.safetensors"),
        ("lora", "models/Lora/style.safetensors"),
        ("model", "models/Stable-diffusion/dream.safetensors"),
        ("model", "models/Stable-diffusion/old/dream.ckpt"),
        ("vae", "models/VAE/sharp.safetensors"),
    ]
    comfy = made(tmp_path / "c", COMFY)
    assert listing(comfy) == [
        ("control model", "models/controlnet/depth.safetensors"),
        ("embedding", "models/embeddings/a.safetensors"),
        ("image encoder", "models/clip_vision/h.safetensors"),
        ("ip-adapter", "models/ipadapter/plus.safetensors"),
        ("lora", "models/loras/style.safetensors"),
        ("model", "models/checkpoints/xl/Base.safetensors"),
        ("model", "models/unet/lightning.safetensors"),
        ("text encoder", "models/clip/l.safetensors"),
    ]
    # Its folder `models` alone is the same.
    assert [kind for kind, _ in listing(comfy / "models")] == [kind for kind, _ in listing(comfy)]


def test_any_other_folder_holds_models(tmp_path: Path) -> None:
    made(tmp_path, ["one.safetensors", "deep/two.safetensors", "notes.txt", ".hidden.safetensors"])
    made(tmp_path, ["folder/model_index.json", "folder/unet/weights.safetensors"])
    assert listing(tmp_path) == [("model", "folder"), ("model", "one.safetensors"), ("model", "deep/two.safetensors")]


def test_models_beside_folders_of_other_kinds_are_found(tmp_path: Path) -> None:
    made(tmp_path, ["one.safetensors", "loras/style.safetensors", "other/two.safetensors", "folder/model_index.json"])
    assert listing(tmp_path) == [("lora", "loras/style.safetensors"), ("model", "folder"), ("model", "one.safetensors")]


def test_links_in_circles_end(tmp_path: Path) -> None:
    made(tmp_path, ["a/one.safetensors"])
    (tmp_path / "a" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked.safetensors").symlink_to(tmp_path / "a" / "one.safetensors")
    assert [name for _, name in listing(tmp_path)] == ["linked.safetensors", "a/one.safetensors"]


def test_names_are_found_with_and_without_ending_and_case(tmp_path: Path) -> None:
    comfy = made(tmp_path, COMFY)
    base = comfy / "models/checkpoints/xl/Base.safetensors"
    for name in ("Base", "base", "BASE.safetensors", "Base.safetensors"):
        assert find(name, "model", [comfy]) == base
    assert find("xl/base", "model", [comfy]) == base and find("owner/name", "model", [comfy]) is None
    assert find("Base", "model", []) is None
    with pytest.raises(CheckpointError, match=r"there is no model 'bse' in .*: did you mean Base\?"):
        find("bse", "model", [comfy])
    with pytest.raises(CheckpointError, match=r"there is no lora 'zzz' in .*: there are style"):
        find("zzz", "lora", [comfy])
    with pytest.raises(CheckpointError, match=r"there is no vae 'zzz' in .*: there are none"):
        find("zzz", "vae", [comfy])


def test_a_name_of_several_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, A1111)
    with pytest.raises(CheckpointError, match=r"'dream' is the name of several in .*: give one"):
        find("dream", "model", [folder])
    assert find("dream.ckpt", "model", [folder]) == folder / "models/Stable-diffusion/old/dream.ckpt"


def test_folders_come_from_the_option_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert model_folders() == []
    monkeypatch.setenv(VARIABLE, f"{tmp_path}{os.pathsep}~/models")
    assert model_folders() == [tmp_path, Path("~/models").expanduser()]
    assert model_folders(tmp_path) == [tmp_path]
    with pytest.raises(CheckpointError, match="the folder of models 'nowhere' does not exist"):
        model_folders("nowhere")
    assert entries([tmp_path / "nowhere"]) == []


def test_a_checkpoint_is_loaded_by_its_name(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, singles: Callable[[str], Path]
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "deep" / "tiny")
    assert load_checkpoint("Tiny", model_dir=tmp_path).source == str(tmp_path / "deep" / "tiny")
    files = checkpoint_files("tiny", None, model_dir=tmp_path)
    assert files and fingerprint(files) == fingerprint(checkpoint_files(tiny_checkpoint, None))
    made(tmp_path, ["vae/x.txt", "text_encoders/x.txt"])
    shutil.copy(singles("sd1"), tmp_path / "vae" / "Sharp.safetensors")
    shutil.copy(singles("sd1"), tmp_path / "text_encoders" / "clip.safetensors")
    parts: Any = {"vae": "sharp", "text_encoder": "clip"}
    shutil.copy(singles("sd1"), tmp_path / "whole.safetensors")
    checkpoint = load_checkpoint("whole", model_dir=tmp_path, **parts)
    assert checkpoint.stored["vae"].files == (tmp_path / "vae" / "Sharp.safetensors",)
    assert checkpoint.stored["text_encoder"].files == (tmp_path / "text_encoders" / "clip.safetensors",)
    beside = [path for _, path in checkpoint_files("whole", None, model_dir=tmp_path, parts=parts)]
    assert beside[1:] == [tmp_path / "vae" / "Sharp.safetensors", tmp_path / "text_encoders" / "clip.safetensors"]
    with pytest.raises(CheckpointError, match=r"there is no vae 'shrp' in .*: did you mean Sharp\?"):
        load_checkpoint("whole", model_dir=tmp_path, vae="shrp")
    spec = ModelSpec("whole", model_dir=str(tmp_path), vae="sharp", text_encoder="clip")
    recorded = recorded_options(spec)
    assert recorded["vae"] == str(tmp_path / "vae" / "Sharp.safetensors")
    assert recorded["text_encoder"] == str(tmp_path / "text_encoders" / "clip.safetensors")
    for name in ("vae", "text_encoders"):
        shutil.rmtree(tmp_path / name)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert load_checkpoint("tiny").source == str(tmp_path / "deep" / "tiny")
    with pytest.raises(CheckpointError, match=r"there is no model 'tny' in .*: did you mean tiny\?"):
        load_checkpoint("tny")
