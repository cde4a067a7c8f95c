import errno
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genpipe.vision.reading import images_in, read_image


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """An image of 8×4 whose halves have these colours."""
    image = Image.new(mode, (8, 4), left)
    image.paste(Image.new(mode, (4, 4), right), (4, 0))
    return image


def corners(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert image.mode == "RGB"
    first, last = image.getpixel((0, 0)), image.getpixel((image.width - 1, 0))
    assert isinstance(first, tuple) and isinstance(last, tuple)
    return first, last


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    halves((200, 0, 0, 0), (0, 0, 200, 255), "RGBA").save(tmp_path / "a.png")
    assert corners(read_image(tmp_path / "a.png")) == ((255, 255, 255), (0, 0, 200))
    palette = halves((10, 20, 30), (40, 50, 60)).quantize(2)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert corners(read_image(tmp_path / "p.png"))[0] == (255, 255, 255)
    halves((0, 0), (90, 255), "LA").save(tmp_path / "la.png")
    assert corners(read_image(str(tmp_path / "la.png"))) == ((255, 255, 255), (90, 90, 90))


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    levels = np.full((4, 8), 0x1234, dtype=np.uint16)
    levels[:, 4:] = 0xFFFF
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(levels).save(tmp_path / name)
        assert corners(read_image(tmp_path / name)) == ((0x12,) * 3, (255,) * 3)


def test_cmyk_bilevel_and_grey_become_rgb(tmp_path: Path) -> None:
    halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK").save(tmp_path / "c.tiff")
    assert corners(read_image(tmp_path / "c.tiff")) == ((255, 0, 0), (0, 0, 255))
    halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK").save(tmp_path / "c.jpg", quality=100, subsampling=0)
    red, blue = corners(read_image(tmp_path / "c.jpg"))
    assert red[0] - red[2] > 225 and blue[2] - blue[0] > 225
    for mode in ("1", "L"):
        Image.new(mode, (8, 4), 255).save(tmp_path / "g.png")
        assert corners(read_image(tmp_path / "g.png")) == ((255,) * 3,) * 2


def test_rotation_is_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    halves((255, 0, 0), (0, 0, 255)).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.size == (4, 8) and image.getpixel((0, 0)) == (255, 0, 0) and image.getpixel((0, 7)) == (0, 0, 255)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_of_an_animation_it_is_the_first_frame(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (8, 4), (255, 0, 0)), Image.new("RGB", (8, 4), (0, 0, 255))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second], lossless=True)
    red = corners(read_image(tmp_path / f"a{suffix}"))[0]
    assert red[0] > 250 and red[2] < 5


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.png is (not an|a damaged) image") as caught:
        read_image(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_image_is_refused(tmp_path: Path, format: str) -> None:
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, format)
    path = tmp_path / "cut"
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(data.getvalue()[: int(share * len(data.getvalue()))])
        with pytest.raises(ValueError, match=r"cut is (not an|a damaged) image") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [1023, 500])  # Pillow warns of the first, and refuses the second itself
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"bomb.png has more than {limit:,} pixels"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024)
    assert read_image(tmp_path / "bomb.png").size == (32, 32)


def test_floating_point_levels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match=r"^\S*f.tiff has floating-point levels without a scale: save it"):
        read_image(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match="this image has levels beyond 16 bits"):
        read_image(Image.new("I", (4, 4), 70_000))


def test_an_image_in_memory_is_left_as_it_is() -> None:
    image = halves((200, 0, 0, 0), (0, 0, 200, 255), "RGBA")
    assert corners(read_image(image))[0] == (255, 255, 255) and image.getpixel((0, 0)) == (200, 0, 0, 0)


def test_the_systems_errors_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")
    with pytest.raises(OSError) as caught:
        read_image(tmp_path)
    assert caught.value.errno == errno.EISDIR


def test_a_folders_images_are_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.d").mkdir()
    assert [path.name for path in images_in(tmp_path)] == ["a.jpeg", "b.PNG"]
    with pytest.raises(ValueError, match=r"the folder \S*c.d holds no images"):
        images_in(tmp_path / "c.d")
