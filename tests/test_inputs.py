"""Control images as commands and tables write them."""

from pathlib import Path

from PIL import Image

from genpipe.request import Request


def test_texts_say_what_a_control_image_is(tmp_path: Path) -> None:
    path = tmp_path / "a:b.png"
    Image.new("RGB", (8, 8)).save(path)
    kind = Request.__dataclass_fields__["control"].metadata["setting"].kind
    for text, values in {
        str(path): (1.0, 0.0, 1.0, None),
        f"{path}:canny": (1.0, 0.0, 1.0, "canny"),
        f"{path}:0.5": (0.5, 0.0, 1.0, None),
        f"{path}:lines:2:0.1:0.9": (2.0, 0.1, 0.9, "lines"),
    }.items():
        (made,) = kind.read("control", text)
        assert (made.scale, made.start, made.end, made.preprocessor) == values
        assert kind.read("control", kind.write((made,))) == (made,)
