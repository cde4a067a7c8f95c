import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.images import to_pil
from genpipe.training.folder import Folder, read_folder

RED, BLUE = (255, 0, 0), (0, 0, 255)


def solid(colour: tuple[int, ...], size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def captioned(folder: Path, name: str, image: Image.Image, caption: str = "a thing") -> Path:
    image.save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption)
    return folder / name


def rows(folder: Path, *entries: object) -> None:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def only(folder: Path, size: int = 16) -> Image.Image:
    """The one usable image."""
    images = read_folder(folder, size)
    assert images.period == 1
    return to_pil(images.draw(random.Random(0), 1))[0]


def pairs(images: Folder) -> set[tuple[str, tuple[int, ...]]]:
    """Every caption with the middle pixel of its image."""
    pixels, captions = images.pixels(0, images.period), [images.wording(i) for i in range(images.period)]
    middles = [image.getpixel((8, 8)) for image in to_pil(pixels)]
    return {(caption(random.Random()), middle) for caption, middle in zip(captions, middles, strict=True)}  # type: ignore[misc]


def test_captions_stand_in_metadata_under_any_of_the_usual_names(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    solid(RED).save(tmp_path / "train" / "a.png")
    solid(BLUE).save(tmp_path / "b.png")
    solid((0, 255, 0)).save(tmp_path / "c.png")
    rows(
        tmp_path,
        {"file_name": "train/a.png", "text": "a red  square\n"},
        "",
        {"file_name": "b.png", "caption": "синий квадрат", "id": 3},
        {"file_name": "./c.png", "text": None, "prompt": "green"},
    )
    images = read_folder(tmp_path, 16)
    assert pairs(images) == {("a red square", RED), ("синий квадрат", BLUE), ("green", (0, 255, 0))}
    assert str(images.report) == "3 images"


def test_captions_stand_in_text_files_beside_the_images_of_all_folders(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").mkdir()
    captioned(tmp_path, "one.png", solid(RED), "\ufeffred")
    captioned(tmp_path / "more", "one.png", solid(BLUE), "blue\n")
    captioned(tmp_path / ".hidden", "one.png", solid(BLUE), "thumbnail")
    (tmp_path / "notes.txt").write_text("not an image")
    assert pairs(read_folder(tmp_path, 16)) == {("red", RED), ("blue", BLUE)}


def damaged(folder: Path, cut: Callable[[bytes], bytes], suffix: str = ".png") -> None:
    path = captioned(folder, f"bad{suffix}", noise())
    path.write_bytes(cut(path.read_bytes()))


def bomb(folder: Path) -> None:
    captioned(folder, "bad.png", Image.new("1", (20_000, 20_000)))


def large(folder: Path) -> None:
    """Under Pillow's error, over its warning."""
    captioned(folder, "bad.png", Image.new("1", (20_000, 5_000)))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda folder: damaged(folder, lambda data: b"not an image at all"), "not an image"),
    "empty": (lambda folder: damaged(folder, lambda data: b""), "not an image"),
    "cut png": (lambda folder: damaged(folder, lambda data: data[: len(data) // 2]), "a damaged image"),
    "cut jpeg": (lambda folder: damaged(folder, lambda data: data[: len(data) // 2], ".jpg"), "a damaged image"),
    "cut webp": (lambda folder: damaged(folder, lambda data: data[: len(data) // 2], ".webp"), "a damaged image"),
    "cut header": (lambda folder: damaged(folder, lambda data: data[:20]), "a damaged image"),
    "scrambled": (lambda folder: damaged(folder, lambda data: data[:60] + bytes(len(data) - 60)), "a damaged image"),
    "postscript": (
        lambda folder: damaged(folder, lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"),
        "not an image",
    ),
    "one pixel": (lambda folder: captioned(folder, "bad.png", solid(RED, (1, 1))), "less than 4 pixels on a side"),
    "sliver": (lambda folder: captioned(folder, "bad.png", solid(RED, (20_000, 3))), "less than 4 pixels on a side"),
    "bomb": (bomb, "more than 89,478,485 pixels"),
    "large": (large, "more than 89,478,485 pixels"),
    "float": (
        lambda folder: captioned(folder, "bad.tiff", Image.new("F", (16, 16))),
        "floating-point levels without a scale",
    ),
    "32 bits": (
        lambda folder: captioned(folder, "bad.tiff", Image.fromarray(np.full((16, 16), 70_000, dtype=np.int32))),
        "levels beyond 16 bits",
    ),
    "no caption": (lambda folder: solid(RED).save(folder / "bad.png"), "no caption"),
    "empty caption": (lambda folder: captioned(folder, "bad.png", solid(RED), " \n"), "empty caption"),
    "latin-1": (
        lambda folder: captioned(folder, "bad.png", solid(RED)).with_suffix(".txt").write_bytes(b"caf\xe9"),
        "caption is not UTF-8 text",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_skipped_and_named(tmp_path: Path, case: str) -> None:
    captioned(tmp_path, "good.png", solid(BLUE), "blue")
    make, reason = BAD_FILES[case]
    make(tmp_path)
    images = read_folder(tmp_path, 16)
    assert pairs(images) == {("blue", BLUE)}
    [(given, [name])] = images.report.skipped.items()
    assert given.startswith(reason) and name.startswith("bad.")
    assert str(images.report) == f"1 image, 1 skipped\n  skipped, {given}: {name}"


BAD_ROWS: list[tuple[object, str, str]] = [
    ("{", "metadata.jsonl line 2", "not a JSON object"),
    ("[" * 100_000, "metadata.jsonl line 2", "not a JSON object"),
    ("[1]", "metadata.jsonl line 2", "not a JSON object"),
    ({"text": "x"}, "metadata.jsonl line 2", "no file_name"),
    ({"file_name": 3, "text": "x"}, "metadata.jsonl line 2", "no file_name"),
    ({"file_name": "../out.png", "text": "x"}, "../out.png", "outside the folder"),
    ({"file_name": "a/../../out.png", "text": "x"}, "a/../../out.png", "outside the folder"),
    ({"file_name": "/etc/passwd", "text": "x"}, "/etc/passwd", "outside the folder"),
    ({"file_name": "missing.png", "text": "x"}, "missing.png", "no such file"),
    ({"file_name": "nul\0.png", "text": "x"}, r"'nul\x00.png'", "no such file"),
    (
        {"file_name": "x" * 300, "text": "x"},
        "'" + "x" * 60 + "…' (300 characters)",
        "cannot be read (File name too long)",
    ),
    ({"file_name": ".", "text": "x"}, ".", "no such file"),
    ({"file_name": "./good.png", "text": "again"}, "./good.png", "duplicate name"),
    ({"file_name": "bad.png"}, "bad.png", "no caption"),
    ({"file_name": "bad.png", "text": None}, "bad.png", "no caption"),
    ({"file_name": "bad.png", "text": "  "}, "bad.png", "empty caption"),
    ({"file_name": "bad.png", "text": ["x"]}, "bad.png", "caption is not text"),
    ({"file_name": "bad.png", "text": "\ud800"}, "bad.png", "caption is not UTF-8 text"),
]


@pytest.mark.parametrize(("row", "name", "reason"), BAD_ROWS)
def test_a_bad_row_is_skipped_and_named(tmp_path: Path, row: object, name: str, reason: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    solid(RED).save(tmp_path / "out.png")
    solid(BLUE).save(folder / "good.png")
    if name == "bad.png":
        solid(RED).save(folder / "bad.png")
    rows(folder, {"file_name": "good.png", "text": "blue"}, row)
    images = read_folder(folder, 16)
    assert pairs(images) == {("blue", BLUE)}
    assert images.report.skipped == {reason: [name]}


def test_an_image_that_metadata_does_not_list_is_named(tmp_path: Path) -> None:
    solid(BLUE).save(tmp_path / "good.png")
    captioned(tmp_path, "other.png", solid(RED))
    rows(tmp_path, {"file_name": "good.png", "text": "blue"})
    assert read_folder(tmp_path, 16).report.skipped == {"not in metadata.jsonl": ["other.png"]}


def test_of_two_images_with_one_caption_file_the_first_is_used(tmp_path: Path) -> None:
    captioned(tmp_path, "a.jpg", solid(BLUE))
    captioned(tmp_path, "a.png", solid(RED))
    assert read_folder(tmp_path, 16).report.skipped == {"duplicate name": ["a.png"]}


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_used(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    solid(RED).save(path, save_all=True, append_images=[solid(BLUE)], lossless=True)
    path.with_suffix(".txt").write_text("x")
    assert only(tmp_path).getpixel((8, 8)) == RED
    assert read_folder(tmp_path, 16).report.converted == {"first frame of an animation": [path.name]}


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    captioned(tmp_path, "a.jpg", solid((0, 255, 255, 0), mode="CMYK"))
    assert np.allclose(np.asarray(only(tmp_path)), RED, atol=4)
    assert str(read_folder(tmp_path, 16).report) == "1 image, 1 converted\n  converted, from CMYK: a.jpg"


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_become_8_by_their_value(tmp_path: Path, suffix: str) -> None:
    levels = np.full((16, 16), 0x8040, dtype=np.uint16)
    captioned(tmp_path, f"a{suffix}", Image.fromarray(levels))
    assert only(tmp_path).getpixel((8, 8)) == (0x80,) * 3
    assert read_folder(tmp_path, 16).report.converted == {"from 16 bits": [f"a{suffix}"]}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("LA", (16, 16), (0, 0)).convert("RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((8, 8))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    assert only(tmp_path).getpixel((8, 8)) == (255, 255, 255)
    assert read_folder(tmp_path, 16).report.converted == {"transparent, laid on white": ["a.png"]}


def test_an_opaque_alpha_channel_is_nothing_to_report(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png", solid((*RED, 255), mode="RGBA"))
    assert str(read_folder(tmp_path, 16).report) == "1 image"


def test_a_small_image_is_enlarged_and_named(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png", solid(RED, (4, 9)))
    assert only(tmp_path).getpixel((8, 8)) == RED
    assert read_folder(tmp_path, 16).report.converted == {"enlarged": ["a.png"]}


def test_rotation_is_obeyed_and_the_central_square_is_kept(tmp_path: Path) -> None:
    image = solid((0, 255, 0), (64, 32))  # green at the ends, the left and the right half of the middle red and blue
    image.paste(RED, (16, 0, 32, 32))
    image.paste(BLUE, (32, 0, 48, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is left comes to the top
    image.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    seen = only(tmp_path)
    assert [seen.getpixel(at) for at in ((1, 1), (14, 1), (1, 14), (14, 14))] == [RED, RED, BLUE, BLUE]


def test_a_long_image_within_the_limit_is_used(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png", solid(RED, (20_000, 20)))
    assert only(tmp_path).getpixel((8, 8)) == RED
    assert str(read_folder(tmp_path, 16).report) == "1 image"


def test_a_large_jpeg_is_read_as_it_looks(tmp_path: Path) -> None:
    wave = (127.5 * (1 + np.sin(np.arange(512) / 30))).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(wave, (512, 1))] * 3, axis=-1))
    captioned(tmp_path, "a.jpg", image)
    expected = image.resize((16, 16), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(only(tmp_path), dtype=float) - np.asarray(expected)).max() < 6


def test_pixels_run_from_minus_one_to_one_and_the_sequence_repeats(tmp_path: Path) -> None:
    for level in (0, 100, 255):
        captioned(tmp_path, f"{level}.png", solid((level,) * 3), str(level))
    images = read_folder(tmp_path, 16)
    pixels, captions = images.pixels(0, 6), [images.wording(i) for i in range(6)]
    assert pixels.shape == (6, 3, 16, 16) and pixels.dtype == torch.float32
    assert torch.equal(pixels[:3], pixels[3:])
    for image, caption in zip(pixels, captions, strict=True):
        assert torch.allclose(image, torch.tensor(int(caption(random.Random())) / 127.5 - 1))


def test_what_happens_to_the_files_later_does_not_matter(tmp_path: Path) -> None:
    path = captioned(tmp_path, "a.png", solid(RED))
    images = read_folder(tmp_path, 16)
    path.unlink()
    assert images.draw(random.Random(0), 4).shape == (4, 3, 16, 16)


def test_a_name_that_is_not_text_can_be_printed(tmp_path: Path) -> None:
    captioned(tmp_path, "good.png", solid(RED))
    try:
        (tmp_path / "bad\udcff\n.png").write_bytes(b"")
    except OSError:
        pytest.skip("this disk takes only names that are text")
    io.TextIOWrapper(io.BytesIO(), encoding="utf-8").write(str(read_folder(tmp_path, 16).report))
    assert read_folder(tmp_path, 16).report.skipped == {"no caption": [r"'bad\udcff\n.png'"]}


def test_what_is_not_a_folder_of_images_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a folder: give one that holds images"):
        read_folder(tmp_path / "nowhere", 16)
    with pytest.raises(ValueError, match=r"holds no images: put .*png"):
        read_folder(tmp_path, 16)
    for name in ("a.png", "b.png"):
        solid(RED).save(tmp_path / name)
    captioned(tmp_path, "c.png", solid(RED, (1, 1)))
    with pytest.raises(
        ValueError, match=r"can be used \(no caption: a.png and 1 more; less than 4 .*: c.png\)"
    ) as error:
        read_folder(tmp_path, 16)
    assert "\n" not in str(error.value)
