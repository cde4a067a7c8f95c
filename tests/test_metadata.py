"""Reading what files of genpipe's and of other programs say of themselves."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin

import genpipe.cli
from genpipe.dialects.a1111 import parameters_text
from genpipe.images import save_image
from genpipe.metadata import annotate, read_made, read_metadata
from genpipe.request import Request

REQUEST = Request("корабль, \"big\"\nat sea", negative_prompt="fog", seed=7, steps=3, guidance_scale=4, height=64, width=64)  # fmt: skip
A1111 = f"{parameters_text(REQUEST, 'dreamshaper_8')}, Face restoration: CodeFormer"


def of_a1111(path: Path, text: str = A1111, encoding: str = "utf-16-be", code: bytes = b"UNICODE\0") -> Path:
    """A file as A1111 writes it: the text in a PNG, or as a JPEG's or WebP's EXIF comment."""
    image = Image.new("RGB", (8, 8))
    if path.suffix == ".png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("parameters", text)
        image.save(path, pnginfo=texts)
    else:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = code + text.encode(encoding, "replace")
        image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_file_of_a1111s_says_what_made_it_and_what_genpipe_cannot_take(tmp_path: Path, suffix: str) -> None:
    path = of_a1111(tmp_path / f"x{suffix}", A1111 if suffix != ".png" else A1111.replace("корабль", "ship"))
    made = read_made(path)
    assert made.request["prompt"].endswith(', "big"\nat sea') and made.request["negative_prompt"] == "fog"
    assert (made.request["seed"], made.request["width"], made.request["steps"]) == (7, 64, 3)
    assert made.model == {} and made.unread == {"Model": "dreamshaper_8", "Face restoration": "CodeFormer"}
    with Image.open(path) as image:
        assert read_made(image) == made
    with pytest.raises(ValueError, match="does not say what made it: give a file that genpipe wrote"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("encoding", "code"), [("utf-16-be", b"UNICODE\0"), ("utf-16-le", b"UNICODE\0"), ("utf-8", b"ASCII\0\0\0")]
)
def test_exif_comments_are_read_in_each_of_their_encodings(tmp_path: Path, encoding: str, code: bytes) -> None:
    assert read_made(of_a1111(tmp_path / "x.jpg", A1111, encoding, code)).request["prompt"] == REQUEST.prompt


def test_a_file_of_ours_gives_every_setting(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64))
    annotate(image, REQUEST, {"model": "embedded", "dtype": "fp32"})
    save_image(image, tmp_path / "x.png")
    made = read_made(tmp_path / "x.png")
    assert Request.from_dict(made.request) == REQUEST and made.unread == {} and made.model["dtype"] == "fp32"


def damaged() -> dict[str, bytes]:
    plain, jpeg = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0\xd8"
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG", exif=exif)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n"
    huge = plain.getvalue().replace((8).to_bytes(4) * 2, (60_000).to_bytes(4) * 2)
    return {
        "says-nothing.png": plain.getvalue(),
        "eps.png": postscript,
        "cut.png": plain.getvalue()[:30],
        "text.png": b"no image",
        "empty.png": b"",
        "huge.png": huge,
        "comment.jpg": jpeg.getvalue(),
        "exif.jpg": jpeg.getvalue().replace(b"\x87\x69", b"\xff\xff"),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_file_that_says_nothing_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(damaged()[name])
    for read in (read_made, read_metadata):
        with pytest.raises(ValueError) as error:
            read(tmp_path / name)
        assert name in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_an_image_of_a1111s_is_drawn_again_and_the_rest_is_named(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    of_a1111(tmp_path / "theirs.png", A1111.replace("корабль", "red").replace("64x64", "32x32"))
    arguments = ["--from-image", str(tmp_path / "theirs.png"), "--model", str(tiny_checkpoint), "--sampler", "euler"]
    assert genpipe.cli.main([*arguments, "--device", "cpu", "--outdir", str(tmp_path), "-o", "ours.png"]) == 0
    said = capsys.readouterr().err
    assert f"not taken from {tmp_path / 'theirs.png'}: Model: dreamshaper_8, Face restoration: CodeFormer\n" in said
    made: dict[str, Any] = read_metadata(tmp_path / "ours.png")
    assert {key: made[key] for key in ("seed", "steps", "width", "sampler", "negative_prompt")} == {
        "seed": 7,
        "steps": 3,
        "width": 32,
        "sampler": "euler",
        "negative_prompt": "fog",
    }
    assert json.dumps(made["prompt"]) == json.dumps('red, "big"\nat sea')
