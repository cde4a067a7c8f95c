"""The benchmark of a GPU machine, run at toy size on the CPU, and what it says of sections that fail."""

import importlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.benchmark.gpu import networks
from scripts.benchmark.gpu.__main__ import Run, main
from scripts.benchmark.gpu.sections import SECTIONS, Plan
from scripts.benchmark.gpu.suite import Recorder
from scripts.benchmark.gpu.summary import ASKED, LONGEST, failures, summary

FILES = ["errors.txt", "failing_tests.txt", "results.json", "summary.txt"]


def measured(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())["sections"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, Any]]:
    """A plan of tiny networks whose checkpoints are there, and the figures of the card's section."""
    plan, figures = (
        Plan(str(tmp_path_factory.mktemp("gpu")), toy=True, ends=time.time() + 300, checkpoints=("sd15", "sdxl")),
        {},
    )
    networks.card(plan, figures.__setitem__)
    return replace(plan, found={"card": figures, "sd15": {"images_per_s/2": 2.0}}), figures


STEPS_OF_TWO = ["step_ms/1", "step_ms/2", "images_per_s/2"]


@pytest.mark.filterwarnings("ignore:.*torch_dtype")
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("card", ["gemm_tflops", "copy_gb_per_s", "made_s/sdxl"]),
        ("sd15", ["load_s", "first_image_s/cold", "decode_ms/8", "text_ms/2", *STEPS_OF_TWO]),
        ("sdxl", ["decode_ms/1", *STEPS_OF_TWO]),
        ("forms", ["plain_ms/1", "channels_last_ms/2"]),
        ("kernels", ["total_ms/2"]),
        ("quality", ["first_image_s/warm", "psnr_db/default", "psnr_db/diffusers"]),
        ("training", ["steps_per_s/4", "ms/4/captions and tokens", "ms/4/forward", "ms/4/backward", "ms/4/average"]),
        ("diffusers", ["eager_step_ms/1", "channels_last_step_ms/2", "decode_ms/8", "images_per_s/2"]),
        ("parity", ["pndm/contrast", "euler_a/latent_difference"]),
        ("render", ["pictures_per_second", "share_of_pipeline", "again_per_second", "seconds/denoise"]),
        ("embedded", ["images_per_s/2", "pictures_per_second", "share_of_pipeline"]),
    ],
)
def test_a_section_gives_its_figures(made: tuple[Plan, dict[str, Any]], name: str, keys: list[str]) -> None:
    plan, figures = made
    if name != "card":
        figures = {}
        module = importlib.import_module(f"scripts.benchmark.gpu.{SECTIONS[name].module}")
        getattr(module, name)(plan, figures.__setitem__)
    assert all(figures[key] > 0 for key in keys), figures
    if name == "quality":
        assert figures["contrast"] > 10 and figures["psnr_db/default"] > 20
    if name == "parity":
        assert figures["ok"] is True
    if name == "kernels":
        table = [value for key, value in figures.items() if key.startswith("kernel_ms/")]
        assert len(table) == networks.SHOWN and table == sorted(table, key=lambda row: -row[0])
    json.dumps(figures)


def test_sections_run_one_after_the_other_in_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status = main(["--toy", "--minutes", "5", "--out", str(tmp_path), "--sections", "sd15"])
    sections = measured(tmp_path)
    assert status == 0, (tmp_path / "errors.txt").read_text()
    assert list(sections) == ["card", "sd15"] and sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert sections["sd15"]["figures"]["step_ms/2"] > 0 and sections["sd15"]["state"] == "done"
    printed = capfd.readouterr().out
    first, _, rest = printed.partition("\n\n")
    assert first == "seconds on an H100: card 24, sd15 52; 76 in all, of which 300 hold the first 2"
    assert rest == (tmp_path / "summary.txt").read_text() + "\n" and len(rest) <= LONGEST + 1


def test_a_section_that_fails_or_has_no_time_takes_none_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    sections = {**SECTIONS, "training": replace(SECTIONS["training"], seconds=0.07)}
    run = Run(out, 2, toy=True, sections=sections)
    run.run(["sd15", "training", "suite"], tmp_path)  # without the checkpoints that the card's section makes
    found = measured(out)
    states = {name: section["state"] for name, section in found.items()}
    assert states == {"sd15": "failed (exit status 1)", "training": "out of time", "suite": "done"}
    assert found["suite"]["figures"]["passed"] > 0 == found["suite"]["figures"]["failed"]
    assert "=== sd15: failed" in (errors := (out / "errors.txt").read_text()) and "does not exist" in errors
    late = Run(out, 0.05, toy=True)
    late.run(["sd15", "sdxl"], tmp_path)
    late.stop()
    assert {section["state"] for section in measured(out).values()} == {"no time was left"}


def test_what_is_asked_for_comes_first_and_fits_nine_minutes() -> None:
    names = list(SECTIONS)
    asked = names[: max(names.index(name) for name in ASKED) + 1]
    assert set(asked) == {*ASKED, "card"} and asked[:4] == ["card", "sd15", "render", "embedded"]
    assert sum(SECTIONS[name].seconds for name in asked) < 9 * 60


@pytest.mark.parametrize(
    ("option", "says"), [("compiled", "compile is for CUDA alone"), ("fp8", "fp8 runs on NVIDIA's")]
)
def test_an_option_that_does_not_go_here_is_named(made: tuple[Plan, dict[str, Any]], option: str, says: str) -> None:
    plan, figures = made[0], {}
    getattr(networks, option)(plan, figures.__setitem__)
    assert list(figures) == [option.removesuffix("d")] and says in figures[option.removesuffix("d")]


def test_tests_that_fail_are_kept_as_they_fail() -> None:
    said: dict[str, Any] = {}
    recorder = Recorder(lambda key, value: said.__setitem__(key, value))
    text = "def test():\nE   assert 1 == 2\nfile.py:3: AssertionError"
    for outcome, when in (("passed", "setup"), ("passed", "call"), ("failed", "call"), ("skipped", "setup")):
        report = SimpleNamespace(
            outcome=outcome, when=when, failed=outcome == "failed", nodeid="tests/test_a.py::test", longreprtext=text
        )
        recorder.pytest_runtest_logreport(report)
    recorder.pytest_sessionfinish()
    assert said == {"failure/tests/test_a.py::test": text, "passed": 1, "failed": 1, "skipped": 1}
    results = {"toy": False, "sections": {"suite": {"state": "done", "seconds": 1.0, "figures": said}}}
    assert "FAILED tests/test_a.py::test: assert 1 == 2" in summary(results)
    assert failures(results) == f"=== suite: tests/test_a.py::test\n{text}\n"


def section(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"state": "done", "seconds": 2.0, "figures": figures}


def test_the_summary_says_what_was_asked_for() -> None:
    kernels = {f"kernel_ms/{'k' * 60}{index}{'e' * 60}": [1.5, 4.0] for index in range(15)}
    sections = {
        "card": section({"card": "Some card", "gemm_tflops": 691.2}),
        "sd15": section({"step_ms/1": 5.0, "step_ms/16": 60.0, "decode_ms/8": 135.0, "step_ms/32": "out of memory"}),
        "kernels": section(kernels),
        "quality": section({"psnr_db/default": 41.0, "psnr_db/diffusers": "absent"}),
    }
    text = summary({"toy": False, "sections": sections})
    lines = text.splitlines()
    assert lines[0] == "card Some card | gemm_tflops 691.2"

    def verdict(title: str) -> str:
        return next(line for line in lines if line.startswith(title)).rpartition(": ")[2]

    assert (verdict("step at 1,"), verdict("step at 16, ms"), verdict("decode")) == ("aim met", "must met", "MISSED")
    assert "step_ms: 1 5, 16 60, 32 out of memory" in text and "diffusers bf16 absent" in text
    assert text.count("1.50 ms      4 x  kkk") == 15 and max(map(len, lines)) < 125
    many = section({f"failure/tests/test_{index}.py": "E " + "x" * 200 for index in range(200)})
    assert len(summary({"toy": False, "sections": {**sections, "suite": many}})) <= LONGEST


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--minutes", "0", "--out", str(tmp_path)])
    assert error.value.code == 2 and "--minutes 0.0 is out of range" in capsys.readouterr().err.splitlines()[-1]
