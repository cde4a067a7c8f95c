"""Repositories of the hub that hold single files, or an autoencoder alone."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe import Pipeline
from genpipe.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from genpipe.checkpoints.fingerprint import checkpoint_files
from genpipe.metadata import read_metadata, split_metadata
from tests.checkpoints.loopback_hub import COMMIT, ID, Hub, point_at
from tests.checkpoints.tiny_families import SD1_TEXT, UNET, only


@pytest.fixture
def whole(singles: Callable[[str], Path]) -> Path:
    return singles("sd1")


@pytest.fixture
def hub(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository with one single file, and with what others have beside it."""
    root = tmp_path / "repository"
    (root / "images").mkdir(parents=True)
    shutil.copy(whole, root / "model.safetensors")
    for name in ("README.md", "model.ckpt", "images/a.png", "images/b.safetensors"):
        (root / name).write_bytes(b"should not be fetched")
    hub = Hub(root)
    point_at(hub.address, tmp_path / "cache", monkeypatch)
    yield hub
    hub.close()


def weights(path: Any, **options: Any) -> dict[str, Tensor]:
    networks = load_checkpoint(path, **options).networks
    return {f"{part}.{name}": t for part, network in networks.items() for name, t in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_only_file_of_a_repository_is_the_model(hub: Hub, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(weights(ID), weights(whole))
    assert hub.sent == ["model.safetensors"] and load_checkpoint(ID).source == ID
    assert same(weights(ID, revision=COMMIT), weights(whole))
    hub.close()
    assert same(weights(ID), weights(whole))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(weights(ID), weights(whole)) and same(weights(ID, file="model.safetensors"), weights(whole))
    (only_file,) = checkpoint_files(ID, None)
    assert only_file[0] == "checkpoint" and only_file[1].read_bytes() == whole.read_bytes()
    with pytest.raises(CheckpointError, match=r"the hub's cache has no other.safetensors, and HF_HUB_OFFLINE"):
        load_checkpoint(ID, file="other.safetensors")


def test_of_several_files_one_is_named(hub: Hub, whole: Path, singles: Callable[[str], Path]) -> None:
    shutil.copy(singles("sd2"), hub.root / "model_2.safetensors")
    shutil.copy(singles("sd2"), hub.root / "images" / "b.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"owner/tiny holds model.safetensors, model_2.safetensors: say which with file= \(--file\)",
    ):
        load_checkpoint(ID)
    assert hub.sent == []
    assert same(weights(ID, file="model.safetensors"), weights(whole))
    assert hub.sent == ["model.safetensors"]
    assert load_checkpoint(ID, file="images/b.safetensors").family.name == "sd2"
    assert hub.sent == ["model.safetensors", "images/b.safetensors"]
    with pytest.raises(
        CheckpointError,
        match=r"has no model_3.safetensors: it holds model.safetensors, model_2.safetensors",
    ):
        load_checkpoint(ID, file="model_3.safetensors")


def test_images_say_which_file_and_are_drawn_again(hub: Hub, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(ID, file="model.safetensors", device="cpu", dtype="fp32")
    pipe("a cat", seed=1, steps=1, height=64, width=64, progress=False).save(tmp_path / "a.png")
    _, spec = split_metadata(read_metadata(tmp_path / "a.png"))
    assert (spec.model, spec.file) == (ID, "model.safetensors")


def test_a_file_in_a_folder_here_is_named_likewise(hub: Hub, whole: Path) -> None:
    assert same(weights(hub.root), weights(whole))
    assert same(weights(hub.root, file="model.safetensors"), weights(whole))
    shutil.copy(whole, hub.root / "another.safetensors")
    with pytest.raises(CheckpointError, match=r"holds another.safetensors, model.safetensors: say which with file="):
        load_checkpoint(hub.root)
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (hub.root, {"file": "gone.safetensors"}, "the folder .* has no file 'gone.safetensors'"),
        (whole, {"file": "model.safetensors"}, "goes with a hub id or a folder, not with the file"),
        (hub.root, {"file": "../model.safetensors"}, "is no name of a file: give that of one in"),
        (hub.root, {"file": "model.safetensors", "variant": "fp16"}, "variant 'fp16' goes with a hub id or a folder"),
    ]
    for path, options, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(path, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["folder", "single"])
def test_an_autoencoder_alone_is_taken_from_the_hub(hub: Hub, whole: Path, tmp_path: Path, form: str) -> None:
    state = load_file(whole)
    save_file(only(UNET, SD1_TEXT)(state), tmp_path / "unet.safetensors")
    for path in hub.root.glob("*.safetensors"):
        path.unlink()
    if form == "folder":
        model = load_checkpoint(whole)
        parts = ("text_encoders", "tokenizers", "unet", "vae", "scheduler_config")
        save_checkpoint(tmp_path / "folder", **{name: getattr(model, name) for name in parts})
        for path in (tmp_path / "folder" / "vae").iterdir():
            shutil.copy(path, hub.root)
        (hub.root / "other_vae.safetensors").write_bytes(b"should not be fetched")
    else:
        save_file(only("first_stage_model.", strip="first_stage_model.")(state), hub.root / "vae.safetensors")
    assert same(weights(tmp_path / "unet.safetensors", vae=ID), weights(whole))
    wanted = ["config.json", "diffusion_pytorch_model.safetensors"] if form == "folder" else ["vae.safetensors"]
    assert sorted(hub.sent) == wanted
    hub.close()
    assert same(weights(tmp_path / "unet.safetensors", vae=ID), weights(whole))
