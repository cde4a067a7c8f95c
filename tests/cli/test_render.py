"""`genpipe render` as a person meets it: one line for each mistake, paths on stdout, the plan before the work."""

import json
import sys
from pathlib import Path

import pytest

from genpipe.cli import main
from tests.render.conftest import Inline
from tests.test_architecture import loaded


@pytest.fixture
def command(capsys, tmp_path, monkeypatch, tiny_checkpoint):
    """Run the command in this process, with the tiny checkpoint: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("genpipe.render.api.LocalEngine", lambda devices: Inline())

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(["render", *arguments, "--model", str(tiny_checkpoint), "--steps", "2", "--dtype", "fp32"])
        except SystemExit as stopped:
            status = int(str(stopped.code))
        return status, *capsys.readouterr()

    return run


def test_the_gallery_is_all_that_is_printed(command, tmp_path):
    Path("p.txt").write_text("a ship\na cat\n")
    status, out, err = command("p.txt", "--out", "renders", "--size", "48x32", "-N", "fog")
    assert (status, out) == (0, f"{tmp_path}/renders/index.html\n")
    assert "2 images in" in err and "2 of 2 in all" in err
    row = json.loads(Path("renders/metadata.jsonl").read_text().splitlines()[0])
    assert (row["width"], row["height"], row["negative_prompt"], row["steps"]) == (48, 32, "fog", 2)


def test_a_failed_row_is_told_and_exits_with_1(command):
    Path("p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "width": 9}\n')
    status, _, err = command("p.jsonl", "--out", "renders", "--quiet")
    assert status == 1 and "1 rows cannot be drawn: see renders/failures.jsonl" in err


def test_seeds_and_numbers(command):
    Path("p.txt").write_text("a\n")
    assert command("p.txt", "--out", "renders", "--seeds", "0-1,70", "-q")[0] == 0
    rows = [json.loads(line) for line in Path("renders/metadata.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 70]


def test_a_dry_run_shows_the_plan_and_leaves_nothing(command, tmp_path):
    Path("p.txt").write_text("a\nb\nc\n")
    status, out, _ = command("p.txt", "--dry-run", "-n", "4", "--batch", "5")
    assert status == 0
    assert "images     12" in out and "batches    3 of at most 5" in out and "time       about" in out and "MB" in out
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"p.txt"}


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["missing.txt", "--out", "o"], 1, "missing.txt: No such file"),
        (["empty.txt", "--out", "o"], 2, "empty.txt is empty"),
        (["junk.txt", "--out", "o"], 2, "junk.txt is not text"),
        (["p.png", "--out", "o"], 2, "has to end in .txt, .jsonl, .csv"),
        (["p.txt"], 2, "say where the images go with --out DIR"),
        (["p.txt", "--out", "p.txt"], 2, "p.txt is a file"),
        (["p.txt", "--out", "o", "--seeds", "3-1"], 2, "write them as 0-63,70"),
        (["p.txt", "--out", "o", "--batch", "many"], 2, "batch must be a whole number from 1 to 1024, not 'many'"),
        (["p.txt", "--out", "o", "--batch", "0"], 2, "batch must be a whole number from 1"),
        (["p.txt", "--out", "o", "--size", "big"], 2, "write it as 512x768"),
        (["p.txt", "--out", "o", "--sampler", "eulr"], 2, "did you mean"),
        (["p.txt", "--out", "o", "--engine", "magic"], 2, "choose from 'local', 'ray'"),
        (["p.txt", "--out", "o", "--address", "x:1"], 2, "is for the ray engine"),
        (["p.txt", "--out", "o", "--format", "gif"], 2, "format must be one of png, jpg, webp"),
        (["p.txt", "--out", "o", "--storage", "nonsense://x"], 2, "storage nonsense://x cannot be used"),
        (["p.txt", "--out", "o", "--outt", "x"], 2, "did you mean --out"),
    ],
)
def test_a_mistake_gets_one_line_and_no_folder(command, arguments, status, reason):
    Path("p.txt").write_text("a\n")
    Path("p.png").write_text("a\n")
    Path("empty.txt").write_text("\n")
    Path("junk.txt").write_bytes(bytes(range(256)))
    got, out, err = command(*arguments)
    assert got == status and out == "" and reason in err
    assert len(err.strip().splitlines()) == 1 and err.startswith("genpipe: error:")
    assert not Path("o").exists()


def test_a_changed_setting_is_a_mistake(command):
    Path("p.txt").write_text("a\n")
    assert command("p.txt", "--out", "o")[0] == 0
    status, _, err = command("p.txt", "--out", "o", "--guidance-scale", "2")
    assert status == 2 and "o was made with guidance_scale the default, now 2.0: give a new --out, or --force" in err


def test_the_coordinator_never_loads_torch(tiny_checkpoint, tmp_path):
    (tmp_path / "p.txt").write_text("a ship\n")
    arguments = ["render", str(tmp_path / "p.txt"), "--out", str(tmp_path / "o"), "--model", str(tiny_checkpoint)]
    code = "from genpipe.cli import main; assert main(sys.argv[1:]) == 0"
    assert loaded(code, arguments=[*arguments, "--steps", "1", "--quiet", "--devices", "cpu"]) == [set()]
    assert len(list((tmp_path / "o/images").iterdir())) == 1


def test_a_script_without_a_guard_may_render(tiny_checkpoint, tmp_path):
    import subprocess

    script = tmp_path / "script.py"
    script.write_text(
        "import genpipe\n"
        f"for picture in genpipe.render(['a ship'], model={str(tiny_checkpoint)!r}, steps=1, devices='cpu'):\n"
        "    print(picture.image.size)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, env={"PYTHONPATH": root, "PATH": ""}
    )
    assert done.stdout == "(32, 32)\n", done.stderr
