"""Sizes as people write them, and what is refused."""

import pytest

from genpipe.sizes import parse_size


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
