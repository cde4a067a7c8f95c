"""The command as a process: streams that the shell closed, signals, warnings, packages that are missing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and closed streams are POSIX's")


def start(
    arguments: list[str], before: str = "", here: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    # A shell lets what it runs in the background ignore interrupts.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import sys\n{heard}\n{before}\nfrom genpipe.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment, cwd=here,
    )  # fmt: skip


def run(arguments: list[str], before: str = "", **environment: str) -> tuple[int, str, str]:
    process = start(arguments, before, None, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("closed", ["<&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(tiny_checkpoint, tmp_path, closed):
    command = f'"$@" {closed}'
    arguments = ["ship", "--steps", "1", "--seed", "1", "--model", str(tiny_checkpoint), "--device", "cpu", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "genpipe", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "ship.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["'torch' in sys.modules", "'numpy' in sys.modules", "True"])
def test_a_signal_during_the_imports_ends_in_a_line_and_status_130(number, when, tmp_path):
    # The signal is sent by the process to itself at the first import after which `when` holds.
    before = (
        "import os, builtins; real = builtins.__import__; sent = []\n"
        "def imported(name, *a, **k):\n"
        "    module = real(name, *a, **k)\n"
        f"    if not sent and 'genpipe.cli.parser' in sys.modules and {when}: sent.append(os.kill(os.getpid(), {number}))\n"
        "    return module\n"
        "builtins.__import__ = imported"
    )
    assert run(["ship", "--steps", "1", "--outdir", str(tmp_path)], before) == (130, "", "\ngenpipe: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_sigterm_ends_a_drawing_as_ctrl_c_does(tiny_checkpoint, tmp_path):
    process = start(
        ["ship", "--steps", "900", "-n", "100", "--model", str(tiny_checkpoint), "--device", "cpu"], here=tmp_path
    )
    assert process.stderr is not None and process.stderr.readline().startswith("seed")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and err.endswith("\ngenpipe: interrupted\n") and "Traceback" not in err


def test_warnings_as_errors_are_still_lines(tiny_checkpoint, tmp_path):
    arguments = [
        "ship " * 500,
        "--steps",
        "1",
        "--model",
        str(tiny_checkpoint),
        "--device",
        "cpu",
        "--outdir",
        str(tmp_path),
        "-q",
    ]
    status, out, err = run(arguments, PYTHONWARNINGS="error")
    assert status == 0 and out and err.startswith("genpipe: warning: the prompt is cut") and err.count("\n") == 1


def test_a_package_that_is_missing_is_a_line():
    status, out, err = run(["ship", "--seed", "1"], "sys.modules['tokenizers'] = None")
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("genpipe: error: the Python package 'tokenizers' is missing")


def test_what_the_terminal_cannot_show_is_escaped():
    status, out, err = run(["vocabulary", "кот"], PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert status == 0 and r"\u043a\u043e\u0442" in out and not err


def test_a_cached_model_draws_without_a_network_and_quietly(tiny_checkpoint, tmp_path):
    commit = "a" * 40
    model = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(tiny_checkpoint, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    nowhere = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    arguments = [
        "ship",
        "--steps",
        "1",
        "--seed",
        "1",
        "--model",
        "owner/tiny",
        "--device",
        "cpu",
        "--outdir",
        str(tmp_path),
    ]
    start = time.monotonic()
    assert run([*arguments, "--quiet"], **nowhere) == (0, f"{tmp_path}/ship.png\n", "")
    assert time.monotonic() - start < 20
    status, _, err = run(arguments, **nowhere)
    line = "genpipe: warning: owner/tiny: the hub does not answer, so the files in its cache are used"
    assert status == 0 and [each for each in err.splitlines() if each.startswith("genpipe: ")] == [line]
