"""Names of devices, and what a process is given one by."""

import pytest

from genpipe.processors import processors
from genpipe.workers.devices import cpu_workers, environment_for, parse_devices, visible_slices


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("auto", []),
        ("cpu", ["cpu"]),
        ("cpu:3", ["cpu"] * 3),
        ("cuda", ["cuda"]),
        ("cuda:0,cuda:2", ["cuda:0", "cuda:2"]),
    ],
)
def test_devices(text, devices):
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["", "gpu", "cpu:", "cpu:x", "cuda:-1", "cpu:0", "cpu:1000"])
def test_what_is_no_device(text):
    with pytest.raises(ValueError, match="devices"):
        parse_devices(text)


def test_a_cpu_takes_as_many_processes_as_fit_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr("genpipe.workers.devices.processors", lambda: 16)
    assert 1 <= cpu_workers(None) <= 16
    (tmp_path / "unet").mkdir()
    with open(tmp_path / "unet" / "w.safetensors", "wb") as file:
        file.truncate(1 << 40)
    assert cpu_workers(str(tmp_path)) == 1
    assert cpu_workers("owner/name") == 1
    assert processors() >= 1


def test_slices_of_a_gpu_are_named_as_nvidia_smi_shows_them():
    assert parse_devices("MIG-3f2a-11,GPU-8932f937-d72c") == ["MIG-3f2a-11", "GPU-8932f937-d72c"]
    assert environment_for("MIG-3f2a-11") == ({"CUDA_VISIBLE_DEVICES": "MIG-3f2a-11"}, "cuda")
    assert environment_for("cuda:1") == ({}, "cuda:1") and environment_for(None) == ({}, None)
    with pytest.raises(ValueError, match="MIG-…"):
        parse_devices("MIG-a;b")


def test_visible_slices_are_workers_of_their_own():
    assert visible_slices({"CUDA_VISIBLE_DEVICES": "MIG-a, MIG-b"}) == ["MIG-a", "MIG-b"]
    assert visible_slices({"CUDA_VISIBLE_DEVICES": "0,1"}) == visible_slices({}) == []
