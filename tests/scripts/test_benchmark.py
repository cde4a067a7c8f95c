"""The benchmark of the speed, on a tiny checkpoint and with clocks and GPUs that are known."""

import importlib
import json
import math
from collections.abc import Callable
from functools import partial
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
from genpipe.models.cpu.forms import PLAIN
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from tests.conftest import tiny_parts
from tests.models.conftest import packs_fp32

NAMES = ("step", "peers", "ceiling", "cuda", "report")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, but for what the inputs of the peers want: prompts of 77 vectors 768 wide."""
    folder = tmp_path_factory.mktemp("benchmark") / "checkpoint"
    save_checkpoint(folder, **tiny_parts(length=77, width=768))
    return folder


def task(peers: Any, part: str, checkpoint: Path, device: str = "cpu") -> Any:
    return peers.Task(part, str(checkpoint), 64, 2, 2, device)


def computed(peers: Any, peer: Callable[[Any], Callable[[], Any]], given: Any) -> np.ndarray:
    with torch.inference_mode():
        result = peer(given)()
    return result.float().cpu().numpy() if isinstance(result, torch.Tensor) else result


@pytest.mark.filterwarnings("ignore:.*torch_dtype")
@pytest.mark.parametrize("part", ["text", "step", "decode", "picture"])
def test_the_peers_compute_the_same(bench: Any, peers: Any, checkpoint: Path, part: str) -> None:
    given = task(peers, part, checkpoint)
    theirs = computed(peers, peers.BUILDERS["diffusers"], given)
    ours = computed(peers, partial(peers.genpipe, dtype="fp32"), given)
    assert ours.shape == theirs.shape and np.ptp(theirs) > 0
    assert bench.psnr(ours, theirs) > (45 if part == "picture" else 80)  # pictures are rounded to 255 levels
    assert 25 < bench.psnr(computed(peers, peers.BUILDERS["tuned"], given), theirs) < 80


def test_what_is_varied_on_a_gpu_leaves_the_step_as_it_is(
    peers: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks in the form that they have on a GPU, on the CPU; torch.compile must take them without a break."""
    monkeypatch.setattr("genpipe.pipeline.networks.forms_for", lambda *given: PLAIN)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    captured: list[torch.Tensor] = []

    def graphed(call: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> Callable[[], torch.Tensor]:
        captured.append(given)
        return lambda: call(given)

    monkeypatch.setattr(peers, "graphed", graphed)
    for part, names in {"step": ("channels_last", "graph", "genpipe_compile"), "decode": ("genpipe_compile",)}.items():
        given = task(peers, part, checkpoint)
        plain = computed(peers, partial(peers.BUILDERS["genpipe"], dtype="fp32"), given)
        for name in names:
            varied = computed(peers, partial(peers.BUILDERS[name], dtype="fp32"), given)
            np.testing.assert_allclose(varied, plain, rtol=0, atol=1e-4 * np.ptp(plain), err_msg=name)
    assert [tuple(latents.shape) for latents in captured] == [(2, 4, 8, 8)]


def test_each_device_has_its_peers(peers: Any) -> None:
    def named(part: str, device: str) -> set[str]:
        return {peer for peer in peers.PEERS if peers.can(peer, part, device)}

    assert set(peers.BUILDERS) == set(peers.PEERS)
    both = {"genpipe", "diffusers", "tuned", "compile"}
    assert named("step", "cpu") == both | {"int8", "openvino"}
    assert named("picture", "cpu") == both | {"int8", "low_memory"}
    assert named("step", "cuda") == both | {"channels_last", "graph", "genpipe_compile", "reduce_overhead"}
    assert named("picture", "cuda") == both | {"channels_last", "genpipe_compile"}
    assert named("text", "cpu") == named("text", "cuda") == {"genpipe", "diffusers", "tuned"}


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.19 GiB"


@pytest.mark.parametrize("where", ["building", "warming up", "running"])
def test_a_peer_out_of_memory_says_so(peers: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    runs = iter([where == "warming up", where == "running"])

    def run() -> torch.Tensor:
        if next(runs):
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return torch.zeros(1)

    def build(task: Any) -> Callable[[], torch.Tensor]:
        if where == "building":
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return run

    monkeypatch.setitem(peers.BUILDERS, "genpipe", build)
    answers: list[dict[str, Any]] = []
    peers.serve("genpipe", task(peers, "step", Path()), ["run\n"], lambda **values: answers.append(values))
    assert answers[-1] == {"left_out": "CUDA out of memory. Tried to allocate 2.50 GiB"}
    assert len(answers) == (2 if where == "running" else 1)


class Scripted:
    """A worker whose k-th run takes k seconds; the peer "compile" fails at its second run."""

    said: list[str]

    def __init__(self, peer: str, task: Any) -> None:
        self.peer, self.runs = peer, 0
        self.failed: str | None = None
        self.ready = {"load_s": 1.0, "first_s": 2.0, "busy_percent": 87.0 if task.device == "cuda" else None}

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
            return {"left_out": "no room"}
        return {"seconds": float(self.runs)}

    def leave(self) -> None:
        pass


@pytest.fixture
def scripted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Scripted.said = []
    monkeypatch.setattr(bench, "Worker", Scripted)
    return Scripted.said


def test_peers_take_turns_on_a_cpu_and_follow_each_other_on_a_gpu(bench: Any, peers: Any, scripted: list[str]) -> None:
    names = ["genpipe", "diffusers", "compile"]
    found = bench.measure(names, task(peers, "step", Path()), 3)
    assert scripted == [*names, *names, "genpipe", "diffusers", "genpipe", "diffusers"]
    assert list(found) == names and found["compile"] == {"left_out": "no room"}
    assert found["genpipe"]["seconds"] == 2 and found["genpipe"]["all_seconds"] == [1, 2, 3]
    # An error of 0.1 in one of two values, over a range of 1.
    assert found["genpipe"]["psnr"] == pytest.approx(-10 * math.log10(0.1**2 / 2))
    scripted.clear()
    again = bench.measure(names, task(peers, "step", Path(), "cuda"), 3)
    assert scripted == ["genpipe"] * 4 + ["diffusers"] * 4 + ["compile"] * 2
    assert again["diffusers"]["busy_percent"] == 87 and again["compile"] == {"left_out": "no room"}
    scripted.clear()
    bench.measure(names[:2], task(peers, "picture", Path()), 3)
    assert scripted == ["genpipe"] * 2 + ["diffusers"] * 2  # a whole picture of a fresh process, once


def test_a_gpu_gets_a_table_a_plot_and_its_utilisation(
    bench: Any, checkpoint: Path, scripted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bench, "choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(bench, "card", lambda: {"gpu": "Some card", "driver": None})
    monkeypatch.setattr(bench, "gemm_rate", lambda dtype, device: 1e12)
    few = ["--device", "cuda", "--sizes", "256", "--batches", "1,3", "--parts", "ceiling,int8,step"]
    some = ["--peers", "genpipe,openvino,diffusers,compile", "--runs", "3"]
    bench.main([*few, *some, "--checkpoint", str(checkpoint), "--out", str(tmp_path)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["gpu"], report["device"]) == ("Some card", "cuda") and "int8" not in report
    for found, ceiling, batch in zip(report["results"], report["ceiling"], (1, 3), strict=True):
        assert found["batch"] == ceiling["batch"] == batch and list(found["rows"]) == [
            "genpipe",
            "diffusers",
            "compile",
        ]
        row = found["rows"]["genpipe"]
        assert row["share_of_ceiling"] == pytest.approx(step_flops(256, batch) / row["seconds"] / 1e12)
    written = (tmp_path / "benchmark.md").read_text()
    assert "| of the ceiling | GPU busy |" in written and "| left out: no room |" in written and "87%" in written
    assert (tmp_path / "benchmark.png").is_file() == (find_spec("matplotlib") is not None)


def step_flops(size: int, batch: int) -> int:
    """As torch counts them; on the meta device it sees attention too."""
    unet = skeleton(lambda: UNet(UNetConfig()))
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        unet(torch.empty(2 * batch, 4, size // 8, size // 8), torch.empty(2 * batch), torch.empty(2 * batch, 77, 768))
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
        (("convolution", 1, 512, 512, 3, 1, 16, 16), {"plain", "packed", "winograd"}),
        (("convolution", 1, 512, 512, 3, 2, 16, 16), {"plain", "packed"}),
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


@pytest.mark.parametrize(("text", "percent"), [("87", 87.0), ("[N/A]", None), (None, None)])
def test_how_busy_a_gpu_is_is_sampled_while_it_runs(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, text: str | None, percent: float | None
) -> None:
    cuda: Any = modules["cuda"]
    runs: list[int] = []
    monkeypatch.setattr(cuda, "SAMPLED", 0.01)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(cuda, "nvidia_smi", lambda field: text if field == "utilization.gpu" and runs else "0")
    assert cuda.busy_percent(lambda: runs.append(1)) == percent
    assert runs


def test_without_nvidia_smi_nothing_is_known(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("Card", (), {"uuid": "1-2"}))
    monkeypatch.setenv("PATH", "")
    assert modules["cuda"].nvidia_smi("driver_version") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(
            ["--device", "cuda"], "error: device 'cuda' is not here: torch sees 0 CUDA devices", marks=without_gpu
        ),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cuda", "--tune"], "--tune measures the processor, not cuda: leave out --device cuda"),
        (["--peers", "tensorflow"], "'tensorflow' is not one of genpipe, channels_last"),
    ],
)
def test_mistakes_are_one_line(bench: Any, arguments: list[str], says: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        bench.main(arguments)
    assert error.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]


def test_a_run_for_real(bench: Any, checkpoint: Path, capsys: Any) -> None:
    few = ["--parts", "step", "--sizes", "64", "--runs", "3", "--peers", "genpipe,graph"]
    bench.main([*few, "--checkpoint", str(checkpoint)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = report["results"][0]["rows"]
    assert list(rows) == ["genpipe"] and report["device"] == "cpu" and "gpu" not in report
    assert len(rows["genpipe"]["all_seconds"]) == 3 and rows["genpipe"]["peak_bytes"] > 1e8


@pytest.mark.gpu
@with_gpu
def test_a_gpu_computes_the_same_in_every_way(bench: Any, peers: Any, checkpoint: Path) -> None:
    given = task(peers, "step", checkpoint, "cuda")
    plain = computed(peers, partial(peers.genpipe, dtype="fp32"), given)
    on_cpu = computed(peers, partial(peers.genpipe, dtype="fp32"), task(peers, "step", checkpoint))
    assert bench.psnr(plain, on_cpu) > 50  # convolutions multiply in TF32
    for name in ("channels_last", "graph", "genpipe_compile"):
        assert bench.psnr(computed(peers, peers.BUILDERS[name], given), plain) > 30, name


@pytest.mark.gpu
@with_gpu
def test_a_graph_reads_what_it_is_given_now(modules: dict[str, ModuleType]) -> None:
    with torch.inference_mode():
        given = torch.arange(4.0, device="cuda")
        replay = modules["cuda"].graphed(lambda x: 2 * x + 1, given)
        assert replay().tolist() == [1, 3, 5, 7]
        given += 1
        assert replay().tolist() == [3, 5, 7, 9]


@pytest.mark.gpu
@with_gpu
def test_a_run_on_a_gpu(bench: Any, checkpoint: Path, capsys: Any) -> None:
    few = ["--parts", "ceiling,step", "--sizes", "64", "--batches", "1,2", "--runs", "2", "--peers", "genpipe,graph"]
    bench.main([*few, "--device", "cuda", "--checkpoint", str(checkpoint)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["gpu"] == torch.cuda.get_device_name() and report["cuda"] == torch.version.cuda
    for found in report["results"]:
        assert all(row["share_of_ceiling"] > 0 and row["peak_bytes"] > 0 for row in found["rows"].values())
        assert list(found["rows"]) == ["genpipe", "graph"]
