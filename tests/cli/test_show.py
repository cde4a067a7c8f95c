"""genpipe show, and --from-image, on files of several programs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from genpipe.metadata import read_metadata
from tests.cli.conftest import Run, pixels
from tests.dialects.test_comfyui import graph
from tests.dialects.test_invokeai import USUAL

pytestmark = pytest.mark.usefixtures("empty_folder")


def png(path: str, **texts: str) -> None:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key.replace("_dash_", "-"), text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def rows(out: str) -> dict[str, str]:
    return {line[:18].strip() or "": line[19:] for line in out.splitlines() if line.strip()}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_image_of_ours_says_all_that_is_not_usual(draw: Run, command: Run, suffix: str) -> None:
    draw("a (red:1.2) cat", "--seed", 3, "--sampler", "euler_a", "-o", f"x{suffix}")
    status, out, err = command("show", f"x{suffix}")
    found = rows(out)
    assert (status, err) == (0, "") and found["made by"] == "genpipe" and found["source"] == "trainedAlgorithmicMedia"
    made = read_metadata(f"x{suffix}")
    for key in ("prompt", "seed", "steps", "sampler", "width", "model", "dtype"):
        assert found[key] == str(made[key])
    assert "clip_skip" not in found and "negative_prompt" not in found


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_images_are_drawn_again_from_every_kind_of_file(draw: Run, command: Run, suffix: str) -> None:
    draw("a cat", "--seed", 3, "-o", "x.png")
    draw("a cat", "--seed", 3, "-o", f"x{suffix}")
    assert command("--from-image", f"x{suffix}", "--device", "cpu", "-o", "again.png")[0] == 0
    assert np.array_equal(pixels("again.png"), pixels("x.png"))


def test_a_file_is_shown_though_what_it_was_made_from_is_gone(draw: Run, command: Run) -> None:
    Image.new("RGB", (32, 32), "red").save("first.png")
    draw("a cat", "--image", "first.png", "-o", "x.png")
    Path("first.png").unlink()
    status, out, _ = command("show", "x.png")
    assert status == 0 and rows(out)["image"].endswith("first.png")
    assert rows(out)["source"] == "compositeWithTrainedAlgorithmicMedia"
    status, _, err = command("--from-image", "x.png", "--device", "cpu")
    assert status == 2 and "first.png' cannot be read: No such file" in err


def write_theirs(program: str) -> str:
    if program == "ComfyUI":
        found = graph()
        found["latent"]["inputs"] |= {"width": 32, "height": 32}
        found["sampler"]["inputs"] |= {"steps": 2, "sampler_name": "euler_ancestral"}
        found["extra"] = {"class_type": "VAELoader", "inputs": {}}
        png("x.png", prompt=json.dumps(found), workflow="{}")
        return "x.png"
    if program == "ComfyUI's WebP":
        write_theirs("ComfyUI")
        exif = Image.Exif()
        exif[ExifTags.Base.Model] = f"prompt:{Image.open('x.png').info['prompt']}"
        exif[ExifTags.Base.Make] = "workflow:{}"
        Image.new("RGB", (8, 8)).save("x.webp", exif=exif)
        return "x.webp"
    said: dict[str, Any] = {**USUAL, "width": 32, "height": 32, "steps": 2, "scheduler": "euler_a", "cfg_scale": 8.0}
    if program == "InvokeAI":
        png("x.png", invokeai_metadata=json.dumps(said))
        return "x.png"
    arguments = {"prompt": "a red cat", "negative_prompt": "fog", "num_inference_steps": 2, "seed": 5, "width": 32}
    arguments |= {"height": 32, "guidance_scale": 8, "scheduler": "EulerAncestralDiscreteScheduler", "model": "m"}
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + json.dumps(arguments).encode()
    Image.new("RGB", (8, 8)).save("x.jpg", exif=exif)
    return "x.jpg"


@pytest.mark.parametrize("program", ["ComfyUI", "ComfyUI's WebP", "InvokeAI", "diffusers"])
def test_what_other_programs_wrote_is_shown_and_drawn(command: Run, tiny_checkpoint: Path, program: str) -> None:
    path = write_theirs(program)
    plain = program.removesuffix("'s WebP")
    status, out, _ = command("show", path)
    assert status == 0 and rows(out)["made by"] == plain and rows(out)["prompt"] == "a red cat"
    assert any(key.startswith("not read: Model") for key in rows(out))
    status, out, err = command("--from-image", path, "--model", tiny_checkpoint, "--device", "cpu", "-o", "theirs.png")
    assert status == 0 and f"taken from {path} ({plain}): " in err and f"not taken from {path}: Model: " in err
    given = ["a red cat", "--no", "fog", "--seed", 5, "--steps", 2, "--scale", 8, "--sampler", "euler_a", "--size", 32]
    assert command(*given, "--model", tiny_checkpoint, "--device", "cpu", "-o", "ours.png")[0] == 0
    assert np.array_equal(pixels("theirs.png"), pixels("ours.png"))


def test_what_a_file_says_cannot_write_to_the_terminal(command: Run) -> None:
    png("x.png", parameters="red \x1b[31m cat\nsecond line\nSteps: 3, Seed: 1, CFG scale: 7, \x1b]0;x\x07: y")
    status, out, err = command("show", "x.png")
    assert status == 0 and "\x1b" not in out + err and "\\x1b[31m" in out
    assert "                   second line\n" in out


@pytest.mark.parametrize("name", ["nothing.png", "text.png", "missing.png"])
def test_a_file_that_says_nothing_is_one_line(command: Run, name: str) -> None:
    Image.new("RGB", (4, 4)).save("nothing.png")
    Path("text.png").write_text("text")
    status, out, err = command("show", name)
    assert status in (1, 2) and not out and name in err and err.count("\n") == 1
