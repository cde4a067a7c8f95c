import errno
import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

import genpipe
from genpipe.dialects.a1111 import parameters_text
from genpipe.filenames import file_stem
from genpipe.images import READ_FORMATS, Picture, from_pil, grid, open_image, save_image, save_new, to_pil
from genpipe.metadata import annotate, read_metadata, read_request
from genpipe.request import Request

REQUEST = Request("pirate ship", seed=2**64 - 1, steps=20, guidance_scale=7.0, height=4, width=6, sampler="euler_a")


def picture(seed: int = 0, width: int = 6, height: int = 4) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    return to_pil(torch.rand(1, 3, height, width, generator=generator) * 2 - 1)[0]


def made_by(request: Request = REQUEST) -> Picture:
    image = picture()
    annotate(image, request, {"model": "embedded"})
    return image


def parse_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings, read the way A1111's web UI reads them."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    parts: dict[bool, list[str]] = {False: [], True: []}
    negative = False
    for line in lines:
        if line.startswith("Negative prompt:"):
            negative, line = True, line.removeprefix("Negative prompt:").strip()
        parts[negative].append(line)
    values = {key: json.loads(value) if value[:1] == '"' else value for key, value in pairs}
    return "\n".join(parts[False]), "\n".join(parts[True]), values


def test_pixels_become_the_levels_that_diffusers_gives():
    ramp = torch.linspace(-1.2, 1.2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    # Exactly between two levels, where rounding rules differ.
    ties = ((torch.arange(255).float() + 0.5) / 255 * 2 - 1).repeat(3 * 64 * 64 // 255 + 1)[: 3 * 64 * 64]
    pixels = torch.cat([ramp, ties.reshape(1, 3, 64, 64)])
    for dtype in (torch.float32, torch.float64):
        ours = to_pil(pixels.to(dtype))
        expected: Any = VaeImageProcessor().postprocess(pixels.to(dtype), output_type="pil")
        assert [image.mode for image in ours] == ["RGB", "RGB"]
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(ours, expected, strict=True))


def test_all_levels_survive_the_way_to_tensors_and_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = from_pil(Image.fromarray(levels))
    assert pixels.shape == (1, 3, 16, 16) and pixels.min() == -1 and pixels.max() == 1
    assert np.array_equal(np.asarray(to_pil(pixels)[0]), levels)


def test_tensors_are_those_that_diffusers_makes():
    batch: list[Image.Image] = [picture(0), picture(1)]
    torch.testing.assert_close(from_pil(batch), VaeImageProcessor(vae_scale_factor=1).preprocess(batch))


def test_half_precision_is_rounded_once():
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).bfloat16()
    assert np.array_equal(np.asarray(to_pil(pixels)[0]), np.asarray(to_pil(pixels.float())[0]))


def test_a_batch_has_one_size():
    with pytest.raises(ValueError, match="6x4 and 7x4"):
        from_pil([picture(), picture(width=7)])
    with pytest.raises(ValueError, match="no images"):
        from_pil([])


@pytest.mark.parametrize(("count", "columns"), [*itertools.product((1, 2, 5, 6), (None, 1, 2, 3, 9))])
def test_a_grid_holds_every_picture_in_reading_order(count, columns):
    tiles = [picture(seed) for seed in range(count)]
    sheet = np.asarray(grid(tiles, columns))
    across = min(count, columns or {1: 1, 2: 2, 5: 3, 6: 3}[count])
    assert sheet.shape == (4 * -(-count // across), 6 * across, 3)
    cells = [sheet[y : y + 4, x : x + 6] for y in range(0, len(sheet), 4) for x in range(0, sheet.shape[1], 6)]
    for cell, tile in itertools.zip_longest(cells, tiles):
        assert np.array_equal(cell, np.asarray(tile) if tile is not None else np.full((4, 6, 3), 255))


@pytest.mark.parametrize(("tiles", "columns"), [([], None), ([picture()], 0)])
def test_a_grid_of_nothing_is_refused(tiles, columns):
    with pytest.raises(ValueError):
        grid(tiles, columns)


HARD_TEXTS = [
    "",
    "ship, red: \"big\" \\ 'x'",
    "a\nb\n\nc",
    "пиратский корабль",
    "🏴‍☠️",
    "\u202eشراع",
    "a\0b",
    "x " * 5000,
]


@pytest.mark.parametrize("text", HARD_TEXTS)
@pytest.mark.parametrize("by", ["save_image", "Image.save"])
def test_a_png_says_what_made_it(tmp_path, text, by):
    request = Request.from_dict({**REQUEST.to_dict(), "prompt": text, "negative_prompt": text})
    image, path = made_by(request), tmp_path / "ship.png"
    save_image(image, path) if by == "save_image" else image.save(path)
    assert read_request(path) == read_request(str(path)) == read_request(image) == request
    assert read_metadata(path)["model"] == "embedded"
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(opened), np.asarray(image))
        prompt, negative, values = parse_a1111(opened.info["parameters"])
    assert prompt == text.replace("\0", "\ufffd").strip() or prompt == text.replace("\0", "\ufffd")
    assert negative == text.replace("\0", "\ufffd").strip()
    assert values["Seed"] == str(2**64 - 1) and values["Sampler"] == "Euler a" and values["Size"] == "6x4"


def test_the_texts_are_itxt_chunks_that_hold_no_nul(tmp_path):
    save_image(made_by(Request.from_dict({**REQUEST.to_dict(), "prompt": "a\0б"})), tmp_path / "a.png")
    data, chunks, at = (tmp_path / "a.png").read_bytes(), {}, 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"iTXt":
            key, rest = body.split(b"\0", 1)
            chunks[key.decode()] = rest[4:].decode()  # after flag, method, language, translated key
        at += length + 12
    assert set(chunks) == {"parameters", "genpipe", "XML:com.adobe.xmp"}
    assert not any("\0" in text for text in chunks.values()) and "б" in chunks["parameters"]


def test_the_parameters_are_a1111s():
    prompt, settings = parameters_text(REQUEST, "embedded").splitlines()
    assert prompt == "pirate ship"
    assert settings == (
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 18446744073709551615, Size: 6x4, Model: embedded, "
        f"Version: genpipe {genpipe.__version__}"
    )


def test_the_parameters_survive_awkward_values():
    changes = {
        "guidance_rescale": 0.25,
        "guidance_scale": 7.123456789,
        "clip_skip": 1,
        "sampler": "dpmpp_2m_sde_karras",
    }
    text = parameters_text(Request.from_dict({**REQUEST.to_dict(), **changes}), 'C:\\models\\a, "b"')
    values = parse_a1111(text)[2]
    assert values["Model"] == 'C:\\models\\a, "b"' and values["Sampler"] == "DPM++ 2M SDE Karras"
    assert values["CFG scale"] == "7.123456789" and values["Guidance rescale"] == "0.25" and values["Clip skip"] == "2"


@pytest.mark.parametrize("name", ["pndm", "ddim", "euler", "heun_karras", "dpmpp_2m_exponential", "lcm", "flow_euler"])
def test_a1111s_name_of_a_sampler_leads_back_to_it(name):
    text = parameters_text(Request.from_dict({**REQUEST.to_dict(), "sampler": name}), "m")
    values = {**REQUEST.to_dict(), "sampler": parse_a1111(text)[2]["Sampler"]}
    assert Request.from_dict(values).sampler == name


def test_a_picture_can_be_pickled_and_saved_without_its_texts(tmp_path):
    image = pickle.loads(pickle.dumps(made_by()))
    assert read_request(image) == REQUEST
    image.save(tmp_path / "bare.png", pnginfo=None)
    with pytest.raises(ValueError, match="does not say what made it"):
        read_request(tmp_path / "bare.png")


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_other_formats_are_written_too(tmp_path, suffix):
    image = picture(width=64, height=64).resize((64, 64)).reduce(8).resize((64, 64))
    save_image(image, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as opened:
        difference = np.abs(np.asarray(opened.convert("RGB"), float) - np.asarray(image, float))
    assert difference.mean() < 3


def test_unreadable_sources_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    damaged = picture()
    damaged.info["genpipe"] = "{"
    for source, says in ((tmp_path / "text.png", "not an image"), (picture(), "does not say"), (damaged, "damaged")):
        with pytest.raises(ValueError, match=says):
            read_request(source)
    made = made_by()
    made.info["genpipe"] = json.dumps({**json.loads(made.info["genpipe"]), "steps": 0})
    with pytest.raises(ValueError, match="steps"):
        read_request(made)


def test_an_unknown_suffix_is_refused(tmp_path):
    for name in ("ship", "ship.tiff", ".png"):
        with pytest.raises(ValueError, match=r"has to end in \.png"):
            save_image(picture(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    save_image(picture(0), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in (step, "link") if step == "replace" else (step,):
        monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match=r"No space left on device.*a\.png"):
        save_image(picture(1), tmp_path / "a.png")
    with pytest.raises(OSError):
        save_new(picture(1), tmp_path, "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_write_that_stops_half_way_leaves_no_file(tmp_path):
    script = (
        "import resource, sys\nfrom genpipe.images import save_new\nfrom PIL import Image\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "save_new(Image.effect_noise((64, 64), 90), sys.argv[1], 'noise')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr and not list(tmp_path.iterdir())


def test_an_interrupt_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    for save in (lambda: save_image(picture(), tmp_path / "a.png"), lambda: save_new(picture(), tmp_path, "a")):
        with pytest.raises(KeyboardInterrupt):
            save()
    assert not list(tmp_path.iterdir())


def test_saving_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "ship.png")
    save_image(picture(), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "real" / "ship.png").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
def test_files_get_the_usual_mode(tmp_path):
    old = os.umask(0o027)
    try:
        save_image(picture(), tmp_path / "a.png")
    finally:
        os.umask(old)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_new_files_never_replace_others(tmp_path):
    names = [save_new(picture(k), tmp_path, "pirate-ship").name for k in range(3)]
    assert names == ["pirate-ship.png", "pirate-ship-2.png", "pirate-ship-3.png"]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("Pirate ship, at night!", "pirate-ship-at-night"),
        ("Пиратский корабль", "пиратский-корабль"),
        ("ＡＢＣ １２", "abc-12"),
        ("don't", "dont"),
        ("हिन्दी", "हिन्दी"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\x\0y\n", "c-x-y"),
        *((blank, "picture") for blank in ("", " \n", "🏴‍☠️", "...", "\ud800")),
        *((name, f"picture-{name.lower()}") for name in ("CON", "nul", "COM1", "Lpt9")),
        ("concert", "concert"),
    ],
)
def test_file_stems_read_like_their_prompt(prompt, stem):
    assert file_stem(prompt) == stem


@pytest.mark.parametrize("prompt", ["word " * 100, "x" * 300, "海" * 300, "𝒜𐐷" * 300, "-" * 300 + "a", *HARD_TEXTS])
def test_file_stems_fit_any_disk(tmp_path, prompt):
    stem = file_stem(prompt)
    assert 0 < len(stem) <= 60 and len(stem.encode()) <= 200 and not stem.startswith(("-", ".")) and stem[-1] != "-"
    (tmp_path / f"{stem}-1000.png").touch()
    assert (tmp_path / f"{stem}-1000.png").exists()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%Pages: 1\n%%EndComments\nshowpage\n%%EOF\n"


def test_postscript_by_another_name_is_refused_and_starts_no_program(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(EPS)
    script = (
        "import sys\n"
        "sys.addaudithook(lambda event, args: print(event) if event == 'subprocess.Popen' else None)\n"
        "from genpipe.images import open_image\n"
        "try: open_image(sys.argv[1]).load()\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} is not an image: give a PNG, JPEG, WEBP, BMP, GIF, TIFF file\n"


@pytest.mark.parametrize("format", READ_FORMATS)
def test_the_formats_that_are_read(tmp_path: Path, format: str) -> None:
    path = tmp_path / "of any name"
    Image.new("RGB", (5, 4), (200, 10, 10)).save(path, format)
    with open_image(path) as image, path.open("rb") as file:
        assert image.size == open_image(file).size == (5, 4)


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")
    with pytest.raises(ValueError, match=r"cut.png is (not an|a damaged) image"):
        open_image(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="this file is not an image"):
        open_image(io.BytesIO(b"text"))
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")
