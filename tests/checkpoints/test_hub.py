"""Checkpoints from the hub, played by a server on this machine, and from its cache, with no network at all."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from tests.checkpoints.loopback_hub import COMMIT, ID, Hub, point_at

OTHER = "0" * 39 + "2"
NEEDED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}
EXTRA = (
    "README.md",
    "v1-5-pruned.ckpt",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
)

Tensors = Callable[[Checkpoint], dict[str, Tensor]]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def hub(edited: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in EXTRA:
        (edited.root / name).parent.mkdir(exist_ok=True)
        (edited.root / name).write_bytes(b"should not be fetched")
    hub = Hub(edited.root)
    point_at(hub.address, tmp_path / "cache", monkeypatch)
    yield hub
    hub.close()


@pytest.fixture
def cache(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A hub cache that holds the tiny checkpoint at `main`, and nothing but its index at `half`."""
    repository = tmp_path / "hub" / f"models--{ID.replace('/', '--')}"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / COMMIT)
    (repository / "snapshots" / OTHER).mkdir()
    shutil.copy(tiny_checkpoint / "model_index.json", repository / "snapshots" / OTHER)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "half").write_text(OTHER)
    return tmp_path / "hub"


def test_only_the_needed_files_are_fetched_and_only_once(hub: Hub, tiny_checkpoint: Path, tensors: Tensors) -> None:
    checkpoint = load_checkpoint(ID)
    assert sorted(hub.sent) == sorted(NEEDED)
    assert checkpoint.source == ID
    assert same(tensors(checkpoint), tensors(load_checkpoint(tiny_checkpoint)))
    hub.asked = 0
    assert same(tensors(load_checkpoint(ID)), tensors(checkpoint))
    assert sorted(hub.sent) == sorted(NEEDED) and hub.asked == 1  # is `main` still the commit that the cache holds?
    load_checkpoint(ID, revision=COMMIT)
    assert hub.asked == 1  # a commit never changes


def test_a_variant_is_fetched_in_place_of_the_plain_files(hub: Hub) -> None:
    state = load_file(hub.root / "unet/diffusion_pytorch_model.safetensors")
    half = {key: tensor.half() for key, tensor in state.items()}
    save_file(half, hub.root / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert load_checkpoint(ID, variant="fp16").unet.conv_in.weight.dtype == torch.float16
    plain, variant = (f"unet/diffusion_pytorch_model{v}.safetensors" for v in ("", ".fp16"))
    assert sorted(hub.sent) == sorted(NEEDED - {plain} | {variant})


def test_shards_are_fetched(hub: Hub, edited: Any, tiny_checkpoint: Path, tensors: Tensors) -> None:
    edited.shard("unet")
    assert same(tensors(load_checkpoint(ID)), tensors(load_checkpoint(tiny_checkpoint)))
    assert len([name for name in hub.sent if "-of-00002" in name]) == 2


def test_what_was_fetched_loads_with_the_hub_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch, tensors: Tensors) -> None:
    checkpoint = load_checkpoint(ID)
    hub.close()
    assert same(tensors(load_checkpoint(ID)), tensors(checkpoint))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(tensors(load_checkpoint(ID)), tensors(checkpoint))


def test_only_pickles_on_the_hub_are_named_not_fetched(hub: Hub) -> None:
    for name in ("", ".fp16", ".non_ema"):
        (hub.root / f"unet/diffusion_pytorch_model{name}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet holds only pickle files \(diffusion_pytorch_model.bin\)"):
        load_checkpoint(ID)
    assert not any(name.endswith(".bin") for name in hub.sent)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/unknown", None, "owner/unknown is neither a folder here nor a repository on the hub"),
        (ID, "v9", "owner/tiny has no revision 'v9' on the hub"),
    ],
)
def test_unknown_ids_and_revisions_get_one_clear_line(hub: Hub, name: str, revision: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(name, revision=revision)
    assert "\n" not in str(caught.value)


def test_a_repository_in_another_layout_gets_one_clear_line(hub: Hub) -> None:
    (hub.root / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"owner/tiny: the repository has no model_index.json"):
        load_checkpoint(ID)


def test_no_network_gets_one_clear_line_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits to try again"))
    point_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    with pytest.raises(CheckpointError, match="nor in the hub's cache, and the hub cannot be reached") as caught:
        load_checkpoint("owner/unknown")
    assert "\n" not in str(caught.value)


def test_the_cache_alone_is_enough(
    cache: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tensors: Tensors
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expected = tensors(load_checkpoint(tiny_checkpoint))
    for revision in (None, "main", COMMIT):
        assert same(tensors(load_checkpoint(ID, revision=revision)), expected)
    with pytest.raises(
        CheckpointError,
        match=r"owner/tiny: the hub's cache holds only a part of it, without text_encoder/config.json, and HF_HUB_OFFLINE",
    ):
        load_checkpoint(ID, revision="half")
    with pytest.raises(
        CheckpointError, match="owner/other is not a folder here, nor in the hub's cache, and HF_HUB_OFFLINE"
    ):
        load_checkpoint("owner/other")


def test_a_cached_model_starts_at_once_where_the_hub_does_not_answer(
    cache: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tensors: Tensors, caplog: Any
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits to try again"))
    point_at("http://127.0.0.1:1", cache, monkeypatch)
    expected = tensors(load_checkpoint(tiny_checkpoint))
    for revision in (None, "main"):
        caplog.clear()
        assert same(tensors(load_checkpoint(ID, revision=revision)), expected)
        assert caplog.messages == ["owner/tiny: the hub does not answer, so the files in its cache are used"]
    caplog.clear()
    assert same(tensors(load_checkpoint(ID, revision=COMMIT)), expected)
    assert not caplog.messages  # a commit never changes, and it is all there


def test_a_hub_that_hangs_is_waited_for_once_and_shortly(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        point_at(f"http://127.0.0.1:{deaf.getsockname()[1]}", cache, monkeypatch)
        start = time.monotonic()
        assert load_checkpoint(ID).source == ID
        assert 2 < time.monotonic() - start < 10


def test_a_part_of_a_checkpoint_offline_is_told_as_such(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / f"models--{ID.replace('/', '--')}/snapshots/{COMMIT}/unet/diffusion_pytorch_model.safetensors").unlink()
    point_at("http://127.0.0.1:1", cache, monkeypatch)
    for offline, says in (
        (False, "the hub cannot be reached: fetch it where"),
        (True, "HF_HUB_OFFLINE forbids asking"),
    ):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(ID)
        assert "the hub's cache holds only a part of it, without the weights unet/" in str(caught.value)
        assert says in str(caught.value)


def test_of_a_cache_that_another_program_filled_only_our_own_file_is_asked_for(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert load_checkpoint(ID).defaults == {}
    assert (hub.asked, hub.sent) == (1, [])
    (hub.root / "genpipe.json").write_text('{"steps": 7}')
    assert load_checkpoint(ID).defaults == {"steps": 7}
    assert hub.sent == ["genpipe.json"]
    load_checkpoint(ID, revision=COMMIT)
    assert hub.sent == ["genpipe.json"]


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "\0", "-x", "x" * 999, "\x1b[2J", 5])
def test_what_is_no_revision_is_refused(revision: Any) -> None:
    with pytest.raises(CheckpointError, match=r"revision .* names no branch, tag or commit: give one") as caught:
        load_checkpoint(ID, revision=revision)
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_a_folder_has_no_revision(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder here, which has no revision 'main': leave it out"):
        load_checkpoint(tiny_checkpoint, revision="main")


def test_hf_home_and_hf_hub_offline_are_obeyed(cache: Path) -> None:
    code = f"from genpipe.checkpoints import load_checkpoint as load; print(load({ID!r}).source); load('owner/other')"
    environment = {**os.environ, "HF_HOME": str(cache.parent), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{ID}\n", done.stderr
    assert (
        "nor in the hub's cache, and HF_HUB_OFFLINE forbids asking the hub: set it to 0" in done.stderr.splitlines()[-1]
    )
