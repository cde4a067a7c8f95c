"""The benchmark of loading, on tiny networks."""

import importlib
import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from genpipe.checkpoints import load_checkpoint, load_lora


@pytest.fixture
def loading() -> Any:
    return importlib.import_module("scripts.benchmark.loading")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_a_run_for_real_on_tiny_networks(loading: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loading.main(["--toy", "--folder", str(tmp_path), "--dtype", "fp32", "--weights", "fp8"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["file_bytes"] == (tmp_path / "sdxl.safetensors").stat().st_size
    for cache in ("warm", "cold"):
        assert report[f"read_{cache}"]["seconds"] > 0
        for name in ("as_stored", "ready"):
            row = report[f"{name}_{cache}"]
            assert row["times"] == row["seconds"] / report[f"read_{cache}"]["seconds"]
            assert row["share"] == row["growth_bytes"] / report["file_bytes"]
    assert report["ready_warm"]["unet_bytes"] < 0.75 * report["as_stored_warm"]["unet_bytes"]
    assert report["lora"]["take_s"] > 0


def test_the_lora_changes_every_linear_layer(loading: Any, tmp_path: Path) -> None:
    path, lora = tmp_path / "a.safetensors", tmp_path / "lora.safetensors"
    loading.make(path, lora, loading.tiny(loading.FAMILIES["sdxl"]))
    checkpoint = load_checkpoint(path)
    found = load_lora(lora, checkpoint).names
    wanted = {
        f"{part}.{name}.weight"
        for part, network in checkpoint.networks.items()
        for name, module in network.named_modules()
        if part != "vae" and isinstance(module, torch.nn.Linear) and ("attention" in name or "feed_forward" in name)
    }
    assert found == wanted and len(wanted) > 50


def test_memory_that_was_held_for_a_moment_counts(loading: Any) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is read from Linux's /proc")
    before = loading.held("VmRSS", anew=True)
    with mmap.mmap(-1, 2**27) as pages:  # memory that no allocator has kept from before
        for _ in range(2**7):
            pages.write(bytes(2**20))
    assert 100e6 < loading.held("VmHWM") - before < 200e6
