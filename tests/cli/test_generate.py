"""The command, run for real on a tiny checkpoint."""

import errno
import itertools
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import genpipe
from genpipe.cli.parser import COMMANDS, parse
from genpipe.images import save_image
from genpipe.judge import Score
from genpipe.metadata import read_metadata, read_request
from genpipe.pipeline import BATCH, Pipeline
from tests.cli.conftest import pixels
from tests.conftest import needs_int8

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def no_model(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a model was loaded before everything else was checked")

    monkeypatch.setattr(Pipeline, "from_pretrained", refuse)


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()}


def test_a_prompt_becomes_a_file_whose_path_alone_is_on_stdout(draw):
    status, out, err = draw("Pirate ship!")
    assert (status, out) == (0, "pirate-ship.png\n")
    request = read_request("pirate-ship.png")
    assert (request.prompt, request.steps) == ("Pirate ship!", 2)
    assert pixels("pirate-ship.png").shape == (request.height, request.width, 3)
    assert f"seed {request.seed}\n" in err


def test_generate_is_the_default_and_the_seed_decides(draw):
    runs = (("ship", "--seed", 5), ("generate", "ship", "--seed", 5), ("ship", "--seed", 6))
    paths = [draw(*arguments)[1].strip() for arguments in runs]
    assert paths == ["ship.png", "ship-2.png", "ship-3.png"]
    first, again, other = map(pixels, paths)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_command_draws_what_the_library_draws(draw, tiny_checkpoint):
    draw("ship", "--seed", 3, "-N", "fog", "--guidance-scale", 3, "--guidance-rescale", 0.5, "--sampler", "euler_a")
    settings = {"negative_prompt": "fog", "guidance_scale": 3.0, "guidance_rescale": 0.5, "sampler": "euler_a"}
    image = Pipeline.from_pretrained(tiny_checkpoint, device="cpu")("ship", seed=3, steps=2, progress=False, **settings)
    assert np.array_equal(np.asarray(image), pixels("ship.png"))
    assert image.info["genpipe"] == Image.open("ship.png").info["genpipe"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_prompt_may_be_a_commands_name(draw, name):
    assert draw("generate", name)[1] == f"{name}.png\n"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{seed}.png", ["7.png", "8.png", "9.png"]),
        ("a{index}.png", ["a0.png", "a1.png", "a2.png"]),
        ("%03d.png", ["000.png", "001.png", "002.png"]),
        ("%d-{seed}-{other}.webp", ["0-7-{other}.webp", "1-8-{other}.webp", "2-9-{other}.webp"]),
    ],
)
def test_patterns_name_several_pictures(draw, pattern, names):
    Path("old").mkdir()
    for folder in ([], ["--outdir", "new/deep"], ["--outdir", "old"]):
        status, out, _ = draw("ship", "-n", 3, "--seed", 7, "-o", pattern, *folder)
        assert status == 0 and out.splitlines() == [str(Path(*folder[1:], name)) for name in names]
        assert all(Path(line).is_file() for line in out.splitlines())


def test_pictures_of_a_set_are_those_drawn_alone(draw):
    draw("ship", "-n", 3, "--seed", 2**64 - 2, "--output", "{seed}.png", "--deterministic")
    for seed in (2**64 - 1, 0):
        draw("ship", "--seed", seed, "--output", "alone.png", "--deterministic")
        assert np.array_equal(pixels(f"{seed}.png"), pixels("alone.png"))


def test_more_images_than_a_batch(draw):
    status, out, _ = draw("ship", "-n", BATCH + 1, "--seed", 1, "--steps", 1)
    assert status == 0 and [read_request(path).seed for path in out.split()] == list(range(1, BATCH + 2))


def test_default_names_never_overwrite_and_given_ones_do(draw):
    Path("ship.png").write_text("mine")
    assert draw("ship")[1] == "ship-2.png\n" and Path("ship.png").read_text() == "mine"
    assert draw("ship", "-o", "ship.png")[1] == "ship.png\n" and pixels("ship.png").ndim == 3


@pytest.mark.parametrize("prompt", ["", "пиратский корабль", "🏴‍☠️", "-5", "a\nb", "a\0b", "\u202eشراع", "x" * 10_000])
def test_any_text_is_a_prompt(draw, prompt):
    status, out, err = draw(prompt)
    assert status == 0 and "Traceback" not in err
    assert read_request(out.removesuffix("\n")).prompt == prompt


@pytest.mark.parametrize("prompt", ["info", "--ship", "-h"])
def test_what_follows_two_dashes_is_a_prompt(command, tiny_checkpoint, prompt):
    status, out, _ = command("--steps", 1, "--model", tiny_checkpoint, "--device", "cpu", "--", prompt)
    assert (status, out) == (0, f"{prompt.strip('-')}.png\n")


def test_what_is_cut_off_a_prompt_is_told_in_a_line(draw):
    status, _, err = draw("ship " * 500, "--quiet")
    assert status == 0 and re.fullmatch(r"genpipe: warning: the prompt is cut.*\n", err)


def test_quiet_leaves_stderr_empty(draw):
    assert draw("ship", "--quiet") == (0, "ship.png\n", "")


def test_a_picture_is_drawn_again_from_its_file(draw, command, tiny_checkpoint):
    draw("ship", "--seed", 11, "--sampler", "euler_a", "--negative-prompt", "fog")
    assert command("--from-image", "ship.png", "--device", "cpu")[:2] == (0, "ship-2.png\n")
    assert np.array_equal(pixels("ship.png"), pixels("ship-2.png"))
    assert read_metadata("ship.png") == read_metadata("ship-2.png")
    assert command("boat", "--from-image", "ship.png", "--device", "cpu", "--seed", 12)[1] == "boat.png\n"
    changed = {**read_metadata("ship.png"), "prompt": "boat", "seed": 12}
    assert read_metadata("boat.png") == changed and changed["model"] == str(tiny_checkpoint)


@needs_int8
def test_int8_is_asked_for_and_drawn_again_from_the_file(command, wide_checkpoint):
    draw = partial(command, "ship", "--steps", 2, "--seed", 11, "--model", wide_checkpoint, "--device", "cpu")
    draw("--int8")
    assert command("--from-image", "ship.png", "--device", "cpu")[:2] == (0, "ship-2.png\n")
    assert np.array_equal(pixels("ship.png"), pixels("ship-2.png"))
    assert command("--from-image", "ship.png", "--device", "cpu", "--no-int8")[:2] == (0, "ship-3.png\n")
    assert not np.array_equal(pixels("ship.png"), pixels("ship-3.png"))
    assert [read_metadata(name).get("int8") for name in ("ship.png", "ship-2.png", "ship-3.png")] == [True, True, None]
    status, out, err = draw("--int8", "--dtype", "fp32")
    assert (status, out) == (2, "") and "use --dtype bf16" in err


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("--ddim_steps 9", "--steps 9"),
        ("--ddim-steps=9", "--steps 9"),
        *(
            (f"{name} 3", "--guidance-scale 3")
            for name in ("--scale", "--cfg-scale", "--cfg_scale", "--guidance_scale")
        ),
        ("--guidance_rescale 0.5", "--guidance-rescale 0.5"),
        *((f"{name} fog", "--negative-prompt fog") for name in ("-N", "--neg", "--negative_prompt")),
        *(
            (f"{name} 4", "-n 4")
            for name in ("--n", "--num-images", "--num_images", "--n_samples", "-b", "--batch-count")
        ),
        ("-H 64 -W 32", "--height 64 --width 32"),
        ("--H 64 --W 32", "--height 64 --width 32"),
        ("--sampling-method euler", "--sampler euler"),
        ("--clip_skip 1", "--clip-skip 1"),
        ("-s 5", "--seed 5"),
        ("-m x", "--model x"),
        ("--ckpt x", "--model x"),
        ("-q -o a.png", "--quiet --output a.png"),
    ],
)
def test_the_spellings_of_other_tools_work(spelling, canonical):
    given, expected = (vars(parse(["ship", *options.split()])) for options in (spelling, canonical))
    assert given == expected != vars(parse(["ship"]))


def test_a_command_line_of_compvis_or_of_sd_cli_runs(draw):
    compvis = "--ddim_steps 2 --n_samples 1 --scale 7.5 --H 64 --W 64 --seed 1 --outdir out --steps 2"
    assert draw("--prompt", "ship", *compvis.split())[:2] == (0, f"{Path('out/ship.png')}\n")
    sd_cli = "--cfg-scale 7 --sampling-method euler_a -H 64 -W 64 -s 1 -b 2 -o %03d.png --steps 2"
    assert draw("-p", "ship", *sd_cli.split())[1] == "000.png\n001.png\n"


def test_sizes(draw):
    for options, size in (("--size 64x32", (64, 32)), ("-W 32", None), ("-H 32 -W 64", (64, 32))):
        assert draw("ship", *options.split(), "-o", "a.png")[0] == 0
        height, width, _ = pixels("a.png").shape
        assert (width, height) == (size or (32, height))


GIVEN = "genpipe: error: "
RIGHT = "give yourself the right to it, or choose another place"
SPACE = "free some space, or choose another place"
MEMORY = "out of memory: ask for a smaller size or for fewer images at once, or use --low-memory"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ship", "--sampler", "eulr"], "euler"),
        (["ship", "--steps", "0"], "1 to 1000, not 0"),
        (["ship", "--steps", "many"], "'many'"),
        (["ship", "--guidance-scale", "nan"], "not nan"),
        (["ship", "--scale", "inf"], "not inf"),
        (["ship", "--seed", "-1"], "0 to 18446744073709551615, not -1"),
        (["ship", "--seed", str(2**64)], "18446744073709551616"),
        (["ship", "-n", "0"], "n must be a whole number from 1 to 100000, not 0"),
        (["ship", "--size", "0x64"], "give each side as 1 to 8192 pixels"),
        (["ship", "--size", "64y"], "512 for a square"),
        (["ship", "--size", "64x64", "-H", "64"], "--size or"),
        (["ship", "-H", "9000"], "not 9000"),
        (["ship", "--dtype", "int8"], "'int8'"),
        (["ship\udcff"], "UTF-8"),
        (["ship", "--prompt", "boat"], "two prompts"),
        (["pirate", "ship"], "'ship': put the prompt in quotes"),
        (["info", "ship"], "ship does not exist"),
        (["ship", "--stpes", "3"], "did you mean --steps?"),
        (["ship", "--zzzzzz"], "genpipe --help"),
        (["ship", "--seed"], "expected one argument"),
        (["--seed", "3"], "give a prompt"),
        (["generate"], "give a prompt"),
        (["ship", "-n", "2", "-o", "a.png"], "try a-{index}.png"),
        (["ship", "-o", "a.tiff"], ".png"),
        (["ship", "-o", "missing/a.png"], "does not exist"),
        (["ship", "-o", "."], "has to end in"),
        (["ship", "-o", "folder.png"], "is a folder"),
        (["--from-image", "text.png"], "not an image"),
        (["--from-image", "bare.png"], "does not say what made it"),
    ],
)
def test_a_mistake_is_a_line_and_status_2_before_any_model_is_loaded(command, arguments, says):
    Path("folder.png").mkdir()
    Path("text.png").write_text("text")
    Image.new("RGB", (4, 4)).save("bare.png")
    before = files()
    status, out, err = command(*arguments)
    assert (status, out) == (2, "") and err.startswith(GIVEN) and says in err and err.count("\n") == 1
    assert files() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "65x64"], "width must be a multiple of"),
        (["--clip-skip", "50"], "clip_skip"),
        (["--device", "toaster"], "toaster"),
        (["--model", "./nothing-here"], "nothing-here"),
    ],
)
def test_what_only_the_model_knows_is_a_line_and_status_2_too(command, tiny_checkpoint, arguments, says):
    usual = {"--model": tiny_checkpoint, "--device": "cpu"}
    others = [part for option in usual.items() if option[0] not in arguments for part in option]
    status, out, err = command("ship", "--seed", 1, "--quiet", *arguments, *others)
    assert (status, out) == (2, "") and err.startswith(GIVEN) and says in err and err.count("\n") == 1
    assert not files()


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_cannot_be_written_is_found_first(command, monkeypatch):
    Path("file").touch()
    status, out, err = command("ship", "--outdir", "file/deep")
    assert (status, out) == (1, "") and err.startswith(f"{GIVEN}file") and err.count("\n") == 1

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/temporary/name")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for option in (["--outdir", "out"], ["--output", "out/a.png"]):
        Path("out").mkdir(exist_ok=True)
        status, out, err = command("ship", *option)
        assert (status, err) == (1, f"{GIVEN}out: cannot write into this folder: Permission denied; {RIGHT}\n")
    assert files() == {"file"}


@pytest.mark.parametrize("output", [[], ["-o", "ship.png"]])
def test_a_full_disk_is_a_line_and_leaves_nothing(draw, monkeypatch, output):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, out, err = draw("ship", "--quiet", *output)
    assert (status, out, err) == (1, "", f"{GIVEN}ship.png: No space left on device; {SPACE}\n")
    assert not files()


def test_what_was_saved_before_the_disk_was_full_is_reported(draw, monkeypatch):
    spare, real = itertools.count(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: real(file) if next(spare) < 2 else os.write(-1, b""))
    status, out, _ = draw("ship", "-n", 3, "--quiet")
    assert (status, out) == (1, "ship.png\nship-2.png\n") and files() == {"ship.png", "ship-2.png"}


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "\ngenpipe: interrupted\n"),
        (RuntimeError("the GPU\n  is on fire"), 1, f"{GIVEN}the GPU is on fire\n"),
        (MemoryError(), 1, f"{GIVEN}{MEMORY}\n"),
        (ConnectionError("no network"), 1, f"{GIVEN}no network\n"),
    ],
)
def test_failures_end_without_a_traceback(command, monkeypatch, error, status, says):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Pipeline, "from_pretrained", fail)
    assert command("ship", "--quiet") == (status, "", says)
    assert not files()


def test_a_bug_shows_its_traceback(command, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: None)
    with pytest.raises(TypeError):
        command("ship")


def test_a_reader_that_has_gone_loses_no_picture(tiny_checkpoint):
    arguments = ["ship", "-n", "2", "--steps", "1", "--model", str(tiny_checkpoint), "--device", "cpu", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "genpipe", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    assert files() == {"ship.png", "ship-2.png"}


def test_help_and_version(command):
    status, out, _ = command("--help")
    assert status == 0 and all(f"  {name} " in out for name in COMMANDS)
    assert command("--version") == (0, f"genpipe {genpipe.__version__}\n", "")
    status, out, err = command()
    assert (status, out) == (2, "") and err.startswith("usage: genpipe PROMPT")
    assert "ship" not in command("info", "--help")[1]


def test_info_says_what_would_be_used(command, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "blob").write_bytes(bytes(2_340_000))
    (tmp_path / "hub" / "link").symlink_to("blob")
    status, out, err = command("info")
    rows = dict(line.split(maxsplit=1) for line in out.replace("model cache", "model-cache").splitlines())
    assert (status, err) == (0, "")
    assert rows["genpipe"] == genpipe.__version__ and rows["python"] in sys.version
    assert rows["model-cache"] == f"{tmp_path / 'hub'} (2 MB)"
    assert {"device", "dtype", "threads", "torch", "diffusers", "transformers"} <= set(rows)


def test_paths_are_printed_as_they_are_on_the_disk():
    strange = os.fsdecode(b"caf\xe9.png")
    try:
        save_image(Image.new("RGB", (1, 1)), strange)
    except OSError:
        pytest.skip("this disk holds Unicode names only")
    script = "import sys; from pathlib import Path; from genpipe.cli.output import report; report(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, strange], capture_output=True, env=environment, check=True)
    assert done.stdout == b"caf\xe9.png\n"


def test_the_best_of_several_seeds_is_saved(draw, monkeypatch):
    class Last:
        def check_prompt(self, prompt):
            assert prompt == "ship"

        def scores(self, images, prompts):
            return [Score(prompt, (index % 3) / 2) for index, prompt in enumerate(prompts)]

    asked = []

    def choose(name, *, device):
        asked.append((name, str(device)))
        return Last()

    monkeypatch.setattr("genpipe.pipeline.best_of.choose_judge", choose)
    status, out, _ = draw("ship", "-n", 2, "--seed", 5, "--best-of", 3, "--judge", "clip", "--steps", 1)
    assert status == 0 and set(asked) == {("clip", "cpu")}  # where the images are drawn
    paths = out.split()
    assert [read_request(path).seed for path in paths] == [7, 10]
    assert [entry["total"] for entry in read_metadata(paths[0])["best_of"]] == [0.0, 0.5, 1.0]
    # Made again it is the same picture, without another choice.
    assert draw("--from-image", paths[1], "-o", "again.png", "--steps", 1)[0] == 0
    assert np.array_equal(pixels("again.png"), pixels(paths[1]))


def test_a_choice_of_none_is_refused_before_a_model_loads(command, no_model):
    status, out, err = command("ship", "--best-of", 0)
    assert (status, out) == (2, "") and "best_of must be a whole number from 1 to 100, not 0" in err
