"""What image files carry, found by other readers: an XML parser in the XMP, Pillow in the EXIF data."""

import io
import json
import xml.dom.minidom
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from genpipe.images import FORMATS, Picture, encode_image, grid, save_image
from genpipe.imprint import COMPOSITE, SOURCE, TRAINED, saving_options, texts_in
from genpipe.metadata import annotate, read_metadata, read_request
from genpipe.request import Request

PROMPT = 'корабль & <b> "big"\nat sea ]]> \x01'
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
EXAMPLE = Path(__file__).parents[1] / ".assets" / "examples.png"


def made(prompt: str = PROMPT, **settings: Any) -> Picture:
    image = Picture.of(Image.new("RGB", (16, 16), "red"))
    request = Request(prompt, seed=7, steps=3, guidance_scale=4, height=16, width=16, **settings)
    annotate(image, request, {"model": "caf\udce9", "dtype": "float32"})
    return image


def source_in(image: Image.Image) -> str:
    """IPTC's Digital Source Type, as any reader of XMP finds it in the packet."""
    packet = xml.dom.minidom.parseString(image.info["xmp"])
    (found,) = packet.getElementsByTagNameNS("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "DigitalSourceType")
    assert found.parentNode is not None and found.firstChild is not None
    assert found.parentNode.namespaceURI == "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    return str(found.firstChild.nodeValue)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("saved_by", ["save", "save_image"])
def test_every_kind_of_file_gives_the_request_back(tmp_path: Path, suffix: str, saved_by: str) -> None:
    image, path = made(), tmp_path / f"x{suffix}"
    if saved_by == "save":
        image.save(path)
    else:
        save_image(image, path)
    assert read_request(path).prompt == PROMPT and read_request(path).steps == 3
    assert read_metadata(path) == {**read_metadata(image), "model": "caf?"}
    with Image.open(path) as again:
        assert source_in(again) == f"{SOURCES}{TRAINED}" and texts_in(again)[SOURCE] == TRAINED


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a1111s_text_is_the_comment_where_a1111_keeps_it(suffix: str) -> None:
    image = made("корабль")
    with Image.open(io.BytesIO(encode_image(image, suffix))) as again:
        comment = again.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be", "replace").startswith("корабль\nSteps: 3,")


def test_an_image_made_of_another_says_that_it_is_composed(tmp_path: Path) -> None:
    made(image=EXAMPLE).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as again:
        assert source_in(again) == f"{SOURCES}{COMPOSITE}"


def test_a_grid_says_what_its_images_are() -> None:
    drawn, edited, taken = made(), made(image=EXAMPLE), Image.new("RGB", (16, 16))
    assert grid([drawn, drawn]).info[SOURCE] == TRAINED
    assert {grid(each).info[SOURCE] for each in ([drawn, edited], [drawn, taken], [edited])} == {COMPOSITE}
    assert SOURCE not in grid([taken]).info


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_pixels_are_those_of_a_file_without_texts(suffix: str) -> None:
    image = made()
    bare = Picture.of_levels(np.asarray(image))
    one, other = (Image.open(io.BytesIO(encode_image(each, suffix))) for each in (image, bare))
    assert one.tobytes() == other.tobytes() and not texts_in(other)


def test_what_a_jpeg_has_no_room_for_is_left_out_and_told() -> None:
    image = made("x" * 70_000)
    with pytest.warns(UserWarning) as told:
        data = encode_image(image, ".jpg")
    assert sorted(str(each.message).split(",")[0] for each in told) == [
        "a JPEG has no room for so long a prompt",
        "a JPEG has no room for what made it",
    ]
    assert texts_in(Image.open(io.BytesIO(data))) == {SOURCE: TRAINED}
    for suffix in (".webp", ".png"):
        assert read_request(Image.open(io.BytesIO(encode_image(image, suffix)))).prompt == "x" * 70_000


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"no XML",
        b"<x:xmpmeta",
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>',
        b'<a xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description/></a>',
        b"\xff\xfe\x00",
    ],
)
def test_packets_that_say_nothing_are_passed_over(packet: bytes) -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "WEBP", xmp=packet)
    assert not texts_in(Image.open(data))


def test_other_kinds_of_files_carry_nothing() -> None:
    image = made()
    assert saving_options(image.info, "BMP") == {} and saving_options({}, "PNG") == saving_options({}, "JPEG") == {}
    data = io.BytesIO()
    image.save(data, "PNG")  # by format alone
    assert json.loads(texts_in(Image.open(data))["genpipe"])["prompt"] == PROMPT
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=None)
    assert not texts_in(Image.open(data))
