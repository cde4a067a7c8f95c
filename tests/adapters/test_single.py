"""Single files and GGUF: the denoiser of the file, the other parts of a base, and what diffusers draws with both."""

import importlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from genpipe.adapters import placing
from genpipe.adapters.single import SingleFile
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.fingerprint import checkpoint_files, fingerprint
from genpipe.checkpoints.foreign import foreign
from genpipe.checkpoints.source import Folder
from genpipe.cli import main
from genpipe.metadata import read_made
from genpipe.pipeline import Pipeline
from genpipe.pipeline.wrapped import WrappedDrawer
from genpipe.spec import ModelSpec
from tests.adapters.conftest import family_named
from tests.adapters.original_names import UNET, autoencoder, stable_diffusion_3
from tests.adapters.tiny import Family, seeded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
Load = Callable[[Family], Pipeline]
Save = Callable[[Family], Path]
SD3, FLUX = "Stable Diffusion 3", "FLUX.1 dev"


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


@pytest.fixture
def sd3(folder_of: Save) -> Path:
    return folder_of(family_named(SD3))


@pytest.fixture
def base(sd3: Path, tmp_path: Path) -> Path:
    """The folder of Stable Diffusion 3 without its transformer's weights."""
    copied = Path(shutil.copytree(sd3, tmp_path / "base"))
    (copied / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    return copied


def drawn(pipeline: Pipeline, name: str = SD3) -> np.ndarray:
    settings: Any = family_named(name).settings
    return np.asarray(pipeline("a red cat", seed=3, progress=False, **settings)).astype(int)


def load(file: Path, base: Path, **options: Any) -> Pipeline:
    return Pipeline.from_pretrained(file, base=base, device="cpu", dtype="fp32", **options)


@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_transformer_in_its_authors_names_is_drawn_with_the_parts_of_a_base(
    prefix: str, sd3: Path, base: Path, loaded: Load, tmp_path: Path
):
    state = stable_diffusion_3(weights(sd3, "transformer"), layers=2)
    save_file({f"{prefix}{key}": tensor for key, tensor in state.items()}, tmp_path / "mine.safetensors")
    pipeline = load(tmp_path / "mine.safetensors", base)
    assert np.array_equal(drawn(pipeline), drawn(loaded(family_named(SD3))))
    image = pipeline("a red cat", seed=3, progress=False, steps=2)
    image.save(tmp_path / "cat.png")
    assert read_made(tmp_path / "cat.png").model["base"] == str(base.resolve())


def test_a_file_in_the_names_of_diffusers_is_read_too(sd3: Path, base: Path, loaded: Load, tmp_path: Path):
    shutil.copy(sd3 / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "mine.safetensors")
    assert np.array_equal(drawn(load(tmp_path / "mine.safetensors", base)), drawn(loaded(family_named(SD3))))


def test_a_file_with_an_autoencoder_is_drawn_with_it(sd3: Path, base: Path, tmp_path: Path):
    diffusers: Any = importlib.import_module("diffusers")
    other = seeded(lambda: diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(sd3 / "vae")))
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(0.5)
    state = stable_diffusion_3(weights(sd3, "transformer"), layers=2)
    text = {"text_encoders.qwen25_7b.transformer.x": torch.zeros(1)}
    save_file(
        {**{f"{UNET}{key}": tensor for key, tensor in state.items()}, **autoencoder(other.state_dict(), 2), **text},
        tmp_path / "all.safetensors",
    )
    with pytest.warns(
        UserWarning, match=r"all.safetensors: its text_encoders.qwen25_7b is not read: the parts of .*base are used"
    ):
        pipeline = load(tmp_path / "all.safetensors", base)
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(sd3, vae=other)
    made = pipe("a red cat", generator=torch.Generator().manual_seed(3), **family_named(SD3).by_hand).images[0]
    assert np.array_equal(drawn(pipeline), np.asarray(made).astype(int))


def quantised(state: dict[str, torch.Tensor], path: Path, kind: str, **fields: str) -> Path:
    """Write a GGUF file: what is two-dimensional in blocks of this kind, the rest in fp32."""
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, "flux")
    for key, tensor in state.items():
        array, form = tensor.numpy(), None
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            form = gguf.GGMLQuantizationType[kind]
            array = gguf.quants.quantize(array, form)
        writer.add_tensor(key, array, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_is_drawn_as_diffusers_draws_it(kind: str, folder_of: Save, loaded: Load, tmp_path: Path):
    diffusers: Any = importlib.import_module("diffusers")
    folder, family = folder_of(family_named(FLUX)), family_named(FLUX)
    file = quantised(weights(folder, "transformer"), tmp_path / "flux.gguf", kind)
    pipeline = load(file, folder)
    transformer = diffusers.FluxTransformer2DModel.from_single_file(
        str(file),
        config=str(folder),
        subfolder="transformer",
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    pipe = diffusers.FluxPipeline.from_pretrained(folder, transformer=transformer)
    made = pipe("a red cat", generator=torch.Generator().manual_seed(3), **family.by_hand).images[0]
    image = drawn(pipeline, FLUX)
    assert np.array_equal(image, np.asarray(made).astype(int))
    assert 0 < np.abs(image - drawn(loaded(family), FLUX)).mean() < (2 if kind == "Q8_0" else 30)
    assert isinstance(pipeline.drawer, WrappedDrawer)
    kept = pipeline.drawer.adapted.pipe.transformer
    numbers = sum(tensor.numel() for tensor in weights(folder, "transformer").values())
    assert sum(one.nbytes for one in kept.parameters()) < 4 * numbers * 0.6, "it is kept as it is in the file"


def test_a_gguf_in_its_authors_names_is_read(sd3: Path, base: Path, loaded: Load, tmp_path: Path):
    file = quantised(stable_diffusion_3(weights(sd3, "transformer"), layers=2), tmp_path / "sd3.gguf", "Q8_0")
    assert 0 < np.abs(drawn(load(file, base)) - drawn(loaded(family_named(SD3)))).mean() < 2


def test_memory_is_that_of_the_file_and_the_other_parts(folder_of: Save, tmp_path: Path):
    folder = folder_of(family_named(FLUX))
    file = quantised(weights(folder, "transformer"), tmp_path / "flux.gguf", "Q8_0")
    wanted = foreign(Folder(folder))
    assert wanted is not None
    single = SingleFile(file, wanted.parts, base="x")
    assert single.replaced == ("transformer",)
    others = 4 * sum(tensor.numel() for tensor in weights(folder, "vae").values())
    spec, parts = ModelSpec(str(file)), {"vae": wanted.parts["vae"]}

    def warn(free: int) -> None:
        placing.warn_of_memory(
            folder, parts, spec, device=torch.device("cpu"), dtype=torch.float32, single=single, free=free
        )

    with pytest.warns(UserWarning, match="the weights take about"):
        warn(others + file.stat().st_size - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(others + file.stat().st_size)


def test_the_command_draws_with_a_base_and_draws_again(sd3: Path, base: Path, loaded: Load, tmp_path: Path):
    file = quantised(stable_diffusion_3(weights(sd3, "transformer"), layers=2), tmp_path / "sd3.gguf", "Q8_0")
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    options = ["-m", str(file), "--base", str(base), "--dtype", "fp32", "--device", "cpu", "--quiet"]
    assert main(["a red cat", "-s", "3", "--steps", "2", *options, "-o", str(first)]) == 0
    assert main(["--from-image", str(first), "--device", "cpu", "--quiet", "-o", str(again)]) == 0
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    assert np.array_equal(np.asarray(Image.open(first)), drawn(load(file, base)))


def test_its_fingerprint_is_of_the_file_and_of_the_base(base: Path, tmp_path: Path):
    (tmp_path / "mine.safetensors").write_bytes(b"weights")

    def found() -> str:
        files = checkpoint_files(tmp_path / "mine.safetensors", None, parts={"base": str(base), "vae": None})
        return fingerprint(files, tmp_path / "hashes.json")

    before = found()
    for path in (base / "vae" / "config.json", base / "tokenizer" / "tokenizer.json", tmp_path / "mine.safetensors"):
        text = path.read_text()
        path.write_text(text + " ")
        assert found() != before, path
        path.write_text(text)
    assert found() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proj_out.bias": torch.zeros(3)}, "does not fit the transformer of .*proj_out.bias expected shape"),
        (
            {"x_embedder.proj.bias": None},
            "does not fit the transformer of .*, a SD3Transformer2DModel: 'x_embedder.proj.bias'",
        ),
    ],
)
def test_a_file_that_does_not_fit_its_base_is_an_error(
    change: dict[str, Any], message: str, sd3: Path, base: Path, tmp_path: Path
):
    state = weights(sd3, "transformer")
    state = {**(state if "proj_out.bias" in change else stable_diffusion_3(state, layers=2)), **change}
    save_file({key: tensor for key, tensor in state.items() if tensor is not None}, tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=message) as raised:
        load(tmp_path / "mine.safetensors", base)
    assert "\n" not in str(raised.value) and str(tmp_path / "mine.safetensors") in str(raised.value)


def test_a_file_that_lacks_tensors_is_an_error(folder_of: Save, tmp_path: Path):
    folder = folder_of(family_named("Qwen-Image"))
    state = weights(folder, "transformer")
    del state["proj_out.bias"]
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(
        CheckpointError, match=r"the transformer of .*, a QwenImageTransformer2DModel: it lacks tensors"
    ):
        load(tmp_path / "mine.safetensors", folder)


def test_what_a_file_lacks_is_asked_for(sd3: Path, tmp_path: Path):
    state = stable_diffusion_3(weights(sd3, "transformer"), layers=2)
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is a model of Stable Diffusion 3: give the folder .*--base stabilityai/"
    ):
        Pipeline.from_pretrained(tmp_path / "mine.safetensors", device="cpu")


def test_a_base_that_is_of_no_use_is_an_error(sd3: Path, tiny_checkpoint: Path, folder_of: Save, tmp_path: Path):
    file = sd3 / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match="base is for a model in a single file"):
        load(sd3, sd3)
    with pytest.raises(CheckpointError, match="is drawn by genpipe's own networks, whose files need no base"):
        load(file, tiny_checkpoint)
    with pytest.raises(CheckpointError, match=r"diffusers reads no single files in place of what .* has: "):
        load(file, folder_of(family_named("HunyuanDiT")))
    with pytest.raises(CheckpointError, match="does not exist"):
        load(file, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"weights 'fp8' is not for a .gguf"):
        load(quantised(weights(sd3, "transformer"), tmp_path / "x.gguf", "Q8_0"), sd3, weights="fp8")


def test_weights_in_fp8_with_their_scales_are_widened(sd3: Path, base: Path, loaded: Load, tmp_path: Path):
    state = stable_diffusion_3(weights(sd3, "transformer"), layers=2)
    for key in [key for key in state if key.endswith("qkv.weight")]:
        scale = state[key].abs().max() / 448
        state[key] = (state[key] / scale).to(torch.float8_e4m3fn)
        state[key.replace(".weight", ".scale_weight")] = scale
    save_file({**state, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "scaled.safetensors")
    image, plain = drawn(load(tmp_path / "scaled.safetensors", base)), drawn(loaded(family_named(SD3)))
    assert 0 < np.abs(image - plain).mean() < 5
