"""Sizes as people write them, and what is refused."""

import pytest

from genpipe.sizes import parse_ratio, parse_size, size_of_ratio


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512x768", (512, 768)),
        ("512X768", (512, 768)),
        (" 512 × 768 ", (512, 768)),
        ("512", (512, 512)),
        ("0000000080x8", (80, 8)),
        ("8x0000000080", (8, 80)),
        ("000512", (512, 512)),
        ("8192x1", (8192, 1)),
    ],
)
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "512x", "x512", "512x512x3", "5e2", "-8x8", "512 768", "٥x5", "8.0x8", "1_0"]
)
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size: write it as 512x768, or 512 for a square"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0x8", "000x8", "8193", "8x8193", "9" * 5000, "8x" + "9" * 9])
def test_a_side_out_of_its_range_is_refused(text):
    with pytest.raises(ValueError, match="is out of range: give each side as 1 to 8192 pixels") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "ratio"), [("16:9", 16 / 9), (" 2 : 3 ", 2 / 3), ("3/2", 1.5), ("1.85", 1.85), ("2.39:1", 2.39), ("1", 1)]
)
def test_a_ratio_is_read(text, ratio):
    assert parse_ratio(text) == pytest.approx(ratio)


@pytest.mark.parametrize(
    "text", ["", "a:b", "16:", ":9", "16:9:2", "-1:2", "0:1", "1:0", "9:1", "1:100", "nan", "9" * 5000]
)
def test_what_is_not_a_ratio_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="ratio") as caught:
        parse_ratio(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("side", "step"), [(512, 64), (768, 64), (128, 8), (32, 8)])
@pytest.mark.parametrize("ratio", [1, 16 / 9, 4 / 3, 3 / 2, 21 / 9, 4])
def test_a_size_of_a_ratio_keeps_the_area(side, step, ratio):
    width, height = size_of_ratio(ratio, side, side)
    assert width % step == height % step == 0
    few = side // step < 8  # so that steps are coarse
    assert abs(width * height / side**2 - 1) < (0.35 if few else 0.13)
    assert abs(width / height / ratio - 1) < (0.35 if few else 0.13)
    assert size_of_ratio(1 / ratio, side, side) == (height, width)
    assert ratio != 1 or (width, height) == (side, side)


@pytest.mark.parametrize(
    ("ratio", "size"), [("1:1", (1024, 1024)), ("16:9", (1344, 768)), ("9:16", (768, 1344)), ("3:2", (1216, 832)), ("8:1", (1728, 576))]
)  # fmt: skip
def test_stable_diffusion_xl_has_sizes_of_its_own(ratio, size):
    assert size_of_ratio(parse_ratio(ratio), 1024, 1024, xl=True) == size
