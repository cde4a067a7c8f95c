"""The benchmark of the speed, on a tiny checkpoint and with clocks that are known."""

import importlib
import json
import math
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from genpipe.checkpoints import save_checkpoint
from genpipe.checkpoints.weights import skeleton
from genpipe.hardware import choose_dtype
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from scripts.make.checkpoint import FAMILIES, make_controlnet
from tests.conftest import tiny_parts, tiny_xl_parts
from tests.models.conftest import packs_fp32

CPU = torch.device("cpu")
NAMES = ("step", "peers", "ceiling", "report")


@pytest.fixture
def modules() -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"scripts.benchmark.{name}") for name in NAMES}


@pytest.fixture
def bench(modules: dict[str, ModuleType]) -> Any:
    return modules["step"]


@pytest.fixture
def peers(modules: dict[str, ModuleType]) -> Any:
    return modules["peers"]


@pytest.fixture(scope="module")
def xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, in the form of SDXL."""
    folder = tmp_path_factory.mktemp("benchmark") / "xl"
    save_checkpoint(folder, **tiny_xl_parts())
    make_controlnet(folder, folder / "controlnet")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, but for what the inputs of the peers want: prompts of 77 vectors 768 wide."""
    folder = tmp_path_factory.mktemp("benchmark") / "checkpoint"
    save_checkpoint(folder, **tiny_parts(length=77, width=768))
    make_controlnet(folder, folder / "controlnet")
    return folder


def task(peers: Any, part: str, checkpoint: Path) -> Any:
    return peers.Task(part, str(checkpoint), 64, 2, 2)


def computed(peers: Any, peer: Callable[[Any], Callable[[], Any]], given: Any) -> np.ndarray:
    with torch.inference_mode():
        result = peer(given)()
    return result.float().cpu().numpy() if isinstance(result, torch.Tensor) else result


@pytest.mark.filterwarnings("ignore:.*torch_dtype")
@pytest.mark.parametrize("part", ["text", "step", "control", "decode", "picture"])
def test_the_peers_compute_the_same(bench: Any, peers: Any, checkpoint: Path, part: str) -> None:
    given = task(peers, part, checkpoint)
    theirs = computed(peers, peers.BUILDERS["diffusers"], given)
    ours = computed(peers, partial(peers.genpipe, dtype="fp32"), given)
    assert ours.shape == theirs.shape and np.ptp(theirs) > 0
    assert bench.psnr(ours, theirs) > (45 if part == "picture" else 80)  # pictures are rounded to 255 levels
    tuned = bench.psnr(computed(peers, peers.BUILDERS["tuned"], given), theirs)
    assert tuned > 25 and (part == "picture" or (tuned < 80) == (choose_dtype(None, CPU) == torch.bfloat16))


@pytest.mark.filterwarnings("ignore:.*torch_dtype")
@pytest.mark.parametrize("part", ["step", "control", "decode", "picture"])
def test_the_peers_compute_the_same_of_sdxl(bench: Any, peers: Any, xl_checkpoint: Path, part: str) -> None:
    given = task(peers, part, xl_checkpoint)
    theirs = computed(peers, peers.BUILDERS["diffusers"], given)
    ours = computed(peers, partial(peers.genpipe, dtype="fp32"), given)
    assert ours.shape == theirs.shape and np.ptp(theirs) > 0
    assert bench.psnr(ours, theirs) > (45 if part == "picture" else 80)


def test_each_part_has_its_peers(peers: Any) -> None:
    def named(part: str) -> set[str]:
        return {peer for peer in peers.PEERS if peers.can(peer, part)}

    assert set(peers.BUILDERS) == set(peers.PEERS)
    both = {"genpipe", "diffusers", "tuned", "compile"}
    assert named("step") == both | {"int8", "openvino"}
    assert named("control") == {"genpipe", "diffusers", "tuned", "int8"}
    assert named("picture") == both | {"int8", "low_memory"}
    assert named("text") == {"genpipe", "diffusers", "tuned"}
    assert {peer for peer in peers.PEERS if peers.can(peer, "step", "sdxl")} == both | {"int8"}
    assert not any(peers.can(peer, "text", "sdxl") for peer in peers.PEERS)


class Scripted:
    """A worker whose k-th run takes k seconds; the peer "compile" fails at its second run."""

    said: list[str]

    def __init__(self, peer: str, task: Any) -> None:
        self.peer, self.runs = peer, 0
        self.failed: str | None = None
        self.ready = {"load_s": 1.0, "first_s": 2.0}

    def ask(self, order: str) -> dict[str, Any]:
        if self.failed is not None:
            return {}
        what, _, path = order.partition(" ")
        self.said.append(self.peer)
        if what == "finish":
            np.save(path, np.array([0.0, 1.0 if self.peer == "diffusers" else 0.9]))
            return {"peak_bytes": 3e9}
        self.runs += 1
        if (self.peer, self.runs) == ("compile", 2):
            self.failed = "no room"
            return {}
        return {"seconds": float(self.runs)}

    def leave(self) -> None:
        pass


@pytest.fixture
def scripted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Scripted.said = []
    monkeypatch.setattr(bench, "Worker", Scripted)
    return Scripted.said


def test_peers_take_turns_and_draw_whole_images_one_after_the_other(
    bench: Any, peers: Any, scripted: list[str]
) -> None:
    names = ["genpipe", "diffusers", "compile"]
    found = bench.measure(names, task(peers, "step", Path()), 3)
    assert scripted == [*names, *names, "genpipe", "diffusers", "genpipe", "diffusers"]
    assert list(found) == names and found["compile"] == {"left_out": "no room"}
    assert found["genpipe"]["seconds"] == 2 and found["genpipe"]["all_seconds"] == [1, 2, 3]
    # An error of 0.1 in one of two values, over a range of 1.
    assert found["genpipe"]["psnr"] == pytest.approx(-10 * math.log10(0.1**2 / 2))
    scripted.clear()
    bench.measure(names[:2], task(peers, "step", Path()), 2, together=False)
    assert scripted == ["genpipe"] * 3 + ["diffusers"] * 3
    scripted.clear()
    bench.measure(names[:2], task(peers, "picture", Path()), 3)
    assert scripted == ["genpipe"] * 2 + ["diffusers"] * 2  # a whole picture of a fresh process, once


def test_a_run_gets_a_table_a_plot_and_its_share_of_the_ceiling(
    bench: Any, checkpoint: Path, scripted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    known = {"flops": 1e12, "seconds": 0.5, "gflops_per_second": {"all": 2000.0}}
    monkeypatch.setattr(bench, "ceiling", lambda size, batch, dtype, config: known)
    few = ["--sizes", "256", "--batches", "1,3", "--parts", "ceiling,step", "--runs", "3"]
    some = ["--peers", "genpipe,openvino,diffusers,compile"]
    bench.main([*few, *some, "--checkpoint", str(checkpoint), "--out", str(tmp_path)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["ceiling"] == [{"size": 256, "batch": 1, **known}]
    for found, batch in zip(report["results"], (1, 3), strict=True):
        assert found["batch"] == batch and list(found["rows"]) == ["genpipe", "openvino", "diffusers", "compile"]
        assert found["rows"]["genpipe"].get("share_of_ceiling") == (0.25 if batch == 1 else None)  # of 2 seconds
    written = (tmp_path / "benchmark.md").read_text()
    assert "| of the ceiling |" in written and "| left out: no room |" in written
    assert (tmp_path / "benchmark.png").is_file() == (find_spec("matplotlib") is not None)


def test_the_operations_of_a_step_are_those_that_torch_counts(modules: dict[str, ModuleType]) -> None:
    ceiling, size, batch = modules["ceiling"], 512, 3
    assert ceiling.step_flops(size, batch) == step_flops(size, batch, UNetConfig(), {})
    config, rows = UNetConfig.from_dict(FAMILIES["sdxl"].unet), 2 * batch
    added = {"pooled": torch.empty(rows, 1280, device="meta"), "time_ids": torch.empty(rows, 6, device="meta")}
    operations = ceiling.step_operations(size, batch, config)
    counted = sum(count * ceiling.flops(operation) for operation, count in operations.items())
    assert counted == step_flops(size, batch, config, added)


def step_flops(size: int, batch: int, config: UNetConfig, added: dict[str, torch.Tensor]) -> int:
    """As torch counts them; on the meta device it sees attention too."""
    unet, rows = skeleton(lambda: UNet(config)), 2 * batch
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        latents, context = torch.empty(rows, 4, size // 8, size // 8), torch.empty(rows, 77, config.context_channels)
        unet(latents, torch.empty(rows), context, **added)
    return counter.get_total_flops()


def test_the_rate_of_a_large_product(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling: Any = modules["ceiling"]
    monkeypatch.setattr(ceiling, "best_seconds", lambda run: run() or 0.5)
    assert ceiling.gemm_rate(torch.float32, "cpu", side=64) == 2 * 64**3 / 0.5


@torch.inference_mode()
@packs_fp32
@pytest.mark.parametrize(
    ("operation", "names"),
    [
        (("linear", 6, 8, 5), {"plain", "packed"}),
        (("convolution", 1, 8, 8, 1, 1, 4, 4), {"plain", "packed"}),
        (("convolution", 1, 512, 512, 3, 1, 16, 16), {"plain", "packed", "patches", "winograd"}),
        (("convolution", 1, 64, 64, 3, 1, 32, 36), {"plain", "packed", "patches", "winograd", "winograd4"}),
        (("convolution", 1, 512, 512, 3, 2, 16, 16), {"plain", "packed", "patches"}),
        (("upsampling", 1, 32, 4, 4), {"plain", "phases"}),
        (("upsampling", 1, 256, 4, 6), {"plain", "phases", "winograd"}),
        (("attention", 2, 5, 7, 8), {"plain"}),
    ],
)
def test_all_forms_of_an_operation_compute_the_same(
    modules: dict[str, ModuleType], operation: tuple[Any, ...], names: set[str]
) -> None:
    found = {name: run() for name, run in modules["ceiling"].forms_of(operation, torch.float32)}
    assert found.keys() == names
    for result in found.values():
        assert torch.allclose(result, found["plain"], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "tensorflow"], "'tensorflow' is not one of genpipe, low_memory"),
    ],
)
def test_mistakes_are_one_line(bench: Any, arguments: list[str], says: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        bench.main(arguments)
    assert error.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]


def test_a_run_for_real(bench: Any, checkpoint: Path, capsys: Any) -> None:
    few = ["--parts", "step", "--sizes", "64", "--runs", "3", "--peers", "genpipe,low_memory"]
    bench.main([*few, "--checkpoint", str(checkpoint)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = report["results"][0]["rows"]
    assert list(rows) == ["genpipe"] and report["torch"] == version("torch")
    assert len(rows["genpipe"]["all_seconds"]) == 3 and rows["genpipe"]["peak_bytes"] > 1e8
