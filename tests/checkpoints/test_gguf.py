"""U-Nets in GGUF files: written by gguf's own writer, and widened as diffusers widens the same blocks."""

import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import dequantize_functions
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from torch import Tensor

from genpipe import Pipeline
from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.describe import describe_path
from genpipe.checkpoints.library import entries
from genpipe.checkpoints.tensors import open_tensors
from tests.checkpoints.tiny_families import UNET, only

QUANTISED = ["Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"]
# Types that gguf reads but does not write in Python: where each block of 256 numbers holds the fp16 that scale it.
RANDOM = {"Q6_K": (208,), "Q5_K": (0, 2), "Q4_K": (0, 2), "Q3_K": (108,), "Q2_K": (80, 82)}


def blocks_of(weight: Tensor, kind: Kind, generator: np.random.Generator) -> np.ndarray:
    """A weight in rows of quantised blocks, or blocks of random numbers where gguf does not write the type."""
    if kind.name not in RANDOM:
        return gguf.quantize(weight.numpy(), kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = generator.integers(0, 256, (weight.numel() // block, size), dtype=np.uint8)
    for place in RANDOM[kind.name]:
        scales = generator.uniform(1e-4, 1e-3, len(rows)).astype(np.float16)
        rows[:, place : place + 2] = scales[:, None].view(np.uint8)
    return rows.reshape(len(weight), -1)


def expected(blocks: np.ndarray, kind: Kind, shape: Any) -> Tensor:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = torch.from_numpy(blocks.reshape(-1, size).copy())
    return dequantize_functions[kind](rows, block, size, torch.float32).reshape(shape).to(torch.float16)


def write(path: Path, state: Mapping[str, Tensor], *kinds: Kind) -> dict[str, Tensor]:
    """Write weights as ComfyUI-GGUF has them: layers in rows of blocks, of types at random; the rest as it is.

    Returns:
        What is to be read.
    """
    writer, generator, read = gguf.GGUFWriter(path, "sdxl"), np.random.default_rng(0), {}
    rng = random.Random(0)
    for key, tensor in state.items():
        kind = rng.choice(kinds)
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if tensor.ndim < 2 or tensor.numel() % block or kind in (Kind.F32, Kind.F16):
            tensor = tensor if kind == Kind.F32 else tensor.half()
            writer.add_tensor(key, tensor.numpy())
            read[key] = tensor
            continue
        if tensor.shape[-1] % block:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(tensor.shape))
        rows = blocks_of(tensor if tensor.shape[-1] % block == 0 else tensor.reshape(-1, block), kind, generator)
        writer.add_tensor(key, rows, raw_dtype=kind)
        read[key] = expected(rows, kind, tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


@pytest.fixture(scope="module")
def whole(singles: Callable[[str], Path]) -> Path:
    return singles("sdxl")


@pytest.fixture(scope="module")
def unet(whole: Path) -> dict[str, Tensor]:
    return only(UNET, strip=UNET)(load_file(whole))


def test_every_type_is_widened_as_diffusers_widens_it(tmp_path: Path, whole: Path, unet: dict[str, Tensor]) -> None:
    path, kinds = tmp_path / "unet.gguf", [Kind[name] for name in ("F32", "F16", *QUANTISED, *RANDOM)]
    wanted = write(path, unet, *kinds)
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors} == set(kinds)
    checkpoint = load_checkpoint(path, vae=whole, text_encoder=whole)
    assert checkpoint.family.name == "sdxl"
    names = checkpoint.stored["unet"].names
    found = {names.theirs(key).partition("#")[0]: tensor for key, tensor in checkpoint.unet.state_dict().items()}
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype, key
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-6)  # the last bit of fp16


def test_pictures_are_drawn_from_one_and_its_weights_kept_in_int8(
    tmp_path: Path, whole: Path, unet: dict[str, Tensor]
) -> None:
    write(tmp_path / "unet.gguf", unet, Kind.Q8_0)
    parts: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "text_encoder": whole, "vae": whole}
    settings: Any = {"seed": 1, "steps": 2, "height": 64, "width": 64, "progress": False}
    images = [
        np.asarray(Pipeline.from_pretrained(path, **parts, weights=kept)("a cat", **settings), dtype=float)
        for path, kept in ((whole, None), (tmp_path / "unet.gguf", None), (tmp_path / "unet.gguf", "int8"))
    ]
    for image in images[1:]:
        assert 30 < 10 * np.log10(255**2 / ((image - images[0]) ** 2).mean()) < 80


def test_a_whole_checkpoint_in_one_with_projections_as_convolutions(tmp_path: Path, whole: Path) -> None:
    # As stable-diffusion.cpp writes them.
    state = load_file(whole)
    projections = [key for key in state if key.endswith(("proj_in.weight", "proj_out.weight")) and key.startswith(UNET)]
    widened = {**state, **{key: state[key][..., None, None] for key in projections}}
    write(tmp_path / "whole.gguf", widened, Kind.F32)
    settings: Any = {"seed": 1, "steps": 2, "height": 64, "width": 64, "progress": False}
    first, second = (
        np.asarray(Pipeline.from_pretrained(path, device="cpu", dtype="fp32")("a cat", **settings), dtype=int)
        for path in (whole, tmp_path / "whole.gguf")
    )
    assert projections and np.abs(first - second).max() <= 1


def test_it_is_found_by_name_and_described(tmp_path: Path, unet: dict[str, Tensor]) -> None:
    folder = tmp_path / "models" / "unet"
    folder.mkdir(parents=True)
    write(folder / "small.gguf", unet, Kind.Q4_0)
    (entry,) = entries([tmp_path])
    assert (entry.name, entry.kind) == ("small", "model")
    rows = describe_path(entry.path)
    assert rows["is"] == "a U-Net alone of Stable Diffusion XL" and "Q4_0" in rows["weights"]


def broken(path: Path, unet: dict[str, Tensor]) -> dict[str, tuple[bytes, str]]:
    write(path, unet, Kind.Q8_0)
    content = path.read_bytes()
    return {
        "truncated": (content[:-100], "lies beyond its end"),
        "a lying count": (content[:8] + b"\xff" * 8 + content[16:], "it claims 1844674"),
        "a lying length": (content[:24] + b"\xff\xff\0\0" + content[28:], "is truncated or corrupt"),
        "empty": (b"", "it ends within its header"),
        "another file": (b"PK\x03\x04" + bytes(100), "does not begin as a GGUF file does"),
        "of another byte order": (content[:4] + b"\0\0\0\3" + content[8:], "version 50331648 of GGUF"),
    }


def test_what_cannot_be_read_gets_one_clear_line(tmp_path: Path, unet: dict[str, Tensor], whole: Path) -> None:
    for content, message in broken(tmp_path / "whole.gguf", unet).values():
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(path, vae=whole, text_encoder=whole)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    (tmp_path / "wrong.safetensors").write_bytes((tmp_path / "whole.gguf").read_bytes())
    with pytest.raises(CheckpointError, match="it is a GGUF file under a wrong name"):
        load_checkpoint(tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match=r"the file .* does not exist"):
        load_checkpoint(tmp_path / "gone.gguf")
    with pytest.raises(CheckpointError, match="holds no VAE: add one with vae="):
        load_checkpoint(tmp_path / "whole.gguf")


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"takes the gguf package: pip install 'genpipe\[gguf\]'"):
        load_checkpoint(tmp_path / "a.gguf")


def test_no_damage_to_a_header_is_more_than_an_error(tmp_path: Path, unet: dict[str, Tensor]) -> None:
    path, generator = tmp_path / "a.gguf", random.Random(0)
    write(path, {key: unet[key] for key in list(unet)[:30]}, Kind.Q8_0)
    content = path.read_bytes()
    for _ in range(300):
        spoilt = bytearray(content)
        for place in generator.sample(range(3000), generator.choice([1, 4])):
            spoilt[place] = generator.randrange(256)
        path.write_bytes(spoilt)
        try:
            open_tensors(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
