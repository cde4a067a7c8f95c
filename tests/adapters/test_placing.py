"""Weights in less memory: what they are kept in, where, and what is said where there is not enough of it."""

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genpipe.adapters import placing
from genpipe.adapters.storing import check_stored
from genpipe.checkpoints.foreign import foreign
from genpipe.checkpoints.source import Folder
from genpipe.pipeline import Pipeline
from genpipe.pipeline.wrapped import WrappedDrawer
from genpipe.spec import ModelSpec
from tests.adapters.conftest import family_named
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
Load = Callable[[Family], Pipeline]
Save = Callable[[Family], Path]
FLUX = "FLUX.1 dev"


def drawn(pipeline: Pipeline) -> np.ndarray:
    settings: Any = family_named(FLUX).settings
    return np.asarray(pipeline("a red cat", seed=3, progress=False, **settings)).astype(int)


def parts_of(pipeline: Pipeline) -> dict[str, Any]:
    assert isinstance(pipeline.drawer, WrappedDrawer)
    return pipeline.drawer.adapted.pipe.components


def test_the_denoisers_weights_are_kept_in_fp8(folder_of: Save, loaded: Load):
    folder = folder_of(family_named(FLUX))
    pipeline = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", weights="fp8")
    parts = parts_of(pipeline)
    kept = {tensor.dtype for tensor in parts["transformer"].parameters()}
    assert torch.float8_e4m3fn in kept
    assert {tensor.dtype for name in ("vae", "text_encoder_2") for tensor in parts[name].parameters()} == {
        torch.float32
    }
    image, plain = drawn(pipeline), drawn(loaded(family_named(FLUX)))
    assert 0 < np.abs(image - plain).mean() < 30
    assert pipeline.made_by["weights"] == "fp8"


def test_layers_that_are_fetched_as_they_run_draw_the_same_image(folder_of: Save, loaded: Load):
    folder = folder_of(family_named(FLUX))
    pipeline = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", offload="group")
    assert np.array_equal(drawn(pipeline), drawn(loaded(family_named(FLUX))))
    assert "offload" not in pipeline.made_by


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_what_needs_a_gpu_is_refused_on_a_cpu(offload: str, folder_of: Save):
    with pytest.raises(ValueError, match="keeps weights off a GPU until they run, and the device is a CPU"):
        Pipeline.from_pretrained(folder_of(family_named(FLUX)), device="cpu", offload=offload)


@pytest.mark.parametrize("name", ["Kandinsky 2.2", "Stable Cascade", "DeepFloyd IF"])
def test_families_of_other_networks_are_kept_in_fp8(name: str, folder_of: Save, loaded: Load):
    family = family_named(name)
    given: Any = {"seed": 3, "progress": False, **family.settings}
    pipeline = Pipeline.from_pretrained(folder_of(family), device="cpu", dtype="fp32", weights="fp8")
    image, plain = (np.asarray(each("a red cat", **given)).astype(int) for each in (pipeline, loaded(family)))
    assert 0 < np.abs(image - plain).mean() < 40
    network = parts_of(pipeline)["decoder" if name == "Stable Cascade" else "unet"]
    stored = sum(one.numel() for one in network.parameters() if one.dtype == torch.float8_e4m3fn)
    assert stored > 0.5 * sum(one.numel() for one in network.parameters())


@pytest.mark.parametrize(("name", "whole"), [("Kandinsky 2.2", "movq"), ("HunyuanDiT", "transformer")])
def test_a_part_that_is_fetched_whole_is_named(name: str, whole: str, folder_of: Save, loaded: Load):
    family = family_named(name)
    given: Any = {"seed": 3, "progress": False, **family.settings}
    with pytest.warns(UserWarning, match=f"offload 'group' keeps {whole} on the device"):
        pipeline = Pipeline.from_pretrained(folder_of(family), device="cpu", dtype="fp32", offload="group")
    assert np.array_equal(np.asarray(pipeline("a red cat", **given)), np.asarray(loaded(family)("a red cat", **given)))


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_the_denoisers_weights_are_kept_in_int8_as_diffusers_does(folder_of: Save, loaded: Load):
    diffusers: Any = import_module("diffusers")
    from torchao.quantization import Int8WeightOnlyConfig

    folder, family = folder_of(family_named(FLUX)), family_named(FLUX)
    pipeline = Pipeline.from_pretrained(folder, device="cpu", dtype="bf16", weights="int8")
    mapping: Any = {"transformer": diffusers.TorchAoConfig(Int8WeightOnlyConfig())}
    config = diffusers.PipelineQuantizationConfig(quant_mapping=mapping)
    pipe: Any = diffusers.FluxPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, quantization_config=config)
    made = pipe("a red cat", generator=torch.Generator().manual_seed(3), **family.by_hand).images[0]
    assert np.array_equal(drawn(pipeline), np.asarray(made).astype(int))
    plain = Pipeline.from_pretrained(folder, device="cpu", dtype="bf16")
    assert 0 < np.abs(drawn(pipeline) - drawn(plain)).mean() < 10
    assert {type(one).__name__ for one in parts_of(pipeline)["transformer"].parameters()} >= {"Int8Tensor"}
    assert {type(one).__name__ for one in parts_of(pipeline)["text_encoder_2"].parameters()} == {"Parameter"}


def test_blocks_are_compiled_and_draw_the_same_image(folder_of: Save, loaded: Load):
    pipeline = Pipeline.from_pretrained(folder_of(family_named(FLUX)), device="cpu", dtype="fp32")
    transformer = parts_of(pipeline)["transformer"]
    placing.compile_blocks(pipeline.drawer.adapted.pipe, backend="eager")  # type: ignore[attr-defined]
    compiled = [part for part in transformer.modules() if part._compiled_call_impl is not None]
    assert len(compiled) == 2 and transformer._compiled_call_impl is None
    assert np.array_equal(drawn(pipeline), drawn(loaded(family_named(FLUX))))


def test_what_cannot_be_compiled_is_refused(folder_of: Save):
    with pytest.raises(ValueError, match="compile is for CUDA alone, not for cpu"):
        Pipeline.from_pretrained(folder_of(family_named(FLUX)), device="cpu", compile=True)
    with pytest.raises(ValueError, match="compile is not for UnCLIPPipeline: diffusers names no blocks"):
        placing.compile_blocks(family_named("unCLIP").build())


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_what_quantises_is_asked_for(folder_of: Save):
    with pytest.raises(ValueError, match=r"takes bitsandbytes: pip install 'genpipe\[nf4\]'"):
        check_stored(ModelSpec("m", weights="nf4"), torch.device("cuda"), torch.bfloat16)


def test_what_saves_nothing_or_wants_a_gpu_is_refused(folder_of: Save, tiny_checkpoint: Path):
    folder = folder_of(family_named(FLUX))
    with pytest.raises(
        ValueError, match="'nf4' is made by bitsandbytes on a GPU, and the device is cpu: use int8 or fp8"
    ):
        Pipeline.from_pretrained(folder, device="cpu", weights="nf4")
    with pytest.raises(ValueError, match="weights 'bf16' would save nothing"):
        Pipeline.from_pretrained(folder, device="cpu", dtype="bf16", weights="bf16")
    with pytest.raises(ValueError, match="weights nf4 is for models that diffusers draws: use fp8, int8, bf16"):
        Pipeline.from_pretrained(tiny_checkpoint, device="cpu", weights="nf4")


def test_attention_is_computed_as_diffusers_variable_says(
    folder_of: Save, loaded: Load, monkeypatch: pytest.MonkeyPatch
):
    given: Any = {"device": "cpu", "dtype": "fp32"}
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "_native_math")
    pipeline = Pipeline.from_pretrained(folder_of(family_named(FLUX)), **given)
    network = parts_of(pipeline)["transformer"]
    try:
        chosen = {module.processor._attention_backend for module in network.modules() if hasattr(module, "processor")}
        assert chosen == {"_native_math"}
        assert np.abs(drawn(pipeline) - drawn(loaded(family_named(FLUX)))).max() <= 1
    finally:
        placing.choose_attention(pipeline.drawer.adapted.pipe, "native")  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="DIFFUSERS_ATTN_BACKEND has no effect on StableDiffusion3Pipeline"):
        Pipeline.from_pretrained(folder_of(family_named("Stable Diffusion 3")), **given)
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "quickest")
    with pytest.raises(ValueError, match=r"DIFFUSERS_ATTN_BACKEND 'quickest' cannot be used: .*must be one of"):
        Pipeline.from_pretrained(folder_of(family_named(FLUX)), **given)


@pytest.mark.skipif(find_spec("sageattention") is not None, reason="sageattention is installed")
def test_a_backend_of_attention_that_is_not_installed_is_asked_for(folder_of: Save, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "sage")
    with pytest.raises(ValueError, match=r"'sage' cannot be used: .*Please install `sageattention>="):
        Pipeline.from_pretrained(folder_of(family_named(FLUX)), device="cpu")


def test_offload_is_not_for_genpipes_own_networks(tiny_checkpoint: Path):
    with pytest.raises(ValueError, match="offload is for models that diffusers draws"):
        Pipeline.from_pretrained(tiny_checkpoint, device="cpu", offload="group")


def weights_of(folder: Path, part: str) -> int:
    """Bytes of a part's weights, which are fp32."""
    files = (folder / part).glob("*.safetensors")
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


@pytest.mark.parametrize(
    ("weights", "share", "fixes"),
    [(None, 1.0, "try --offload model or --weights fp8"), ("fp8", 1 / 4, "try --offload model"),
     ("int8", 1 / 4, "try --offload model"), ("nf4", 4.5 / 32, "try --offload model")],
)  # fmt: skip
def test_memory_that_is_short_is_told_before_loading(weights: str | None, share: float, fixes: str, folder_of: Save):
    folder = folder_of(family_named(FLUX))
    wanted = foreign(Folder(folder))
    assert wanted is not None
    others = sum(weights_of(folder, part) for part in ("vae", "text_encoder", "text_encoder_2"))
    needed = others + share * weights_of(folder, "transformer")
    spec, device = ModelSpec(str(folder), weights=weights), torch.device("cpu")

    def warn(free: int) -> None:
        placing.warn_of_memory(folder, wanted.parts, spec, device=device, dtype=torch.float32, free=free)

    with pytest.warns(UserWarning, match=rf"the weights take about .* GB, and .* GB are free on cpu: {fixes}$"):
        warn(int(needed) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(int(needed) + 1)


def test_networks_beside_it_are_counted(folder_of: Save):
    folder = folder_of(family_named(FLUX))
    wanted = foreign(Folder(folder))
    assert wanted is not None
    spec, control = ModelSpec(str(folder), offload="model"), folder / "vae"
    given: Any = {"device": torch.device("cpu"), "dtype": torch.float32, "beside": [control]}
    largest = max(weights_of(folder, part) for part in ("transformer", "vae", "text_encoder", "text_encoder_2"))
    needed = largest + weights_of(folder, "vae")
    with pytest.warns(UserWarning, match="the weights take about"):
        placing.warn_of_memory(folder, wanted.parts, spec, free=needed - 1, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placing.warn_of_memory(folder, wanted.parts, spec, free=needed, **given)


def test_a_model_that_is_offloaded_needs_room_for_its_largest_part(folder_of: Save):
    folder = folder_of(family_named(FLUX))
    wanted = foreign(Folder(folder))
    assert wanted is not None
    largest = max(weights_of(folder, part) for part in ("transformer", "vae", "text_encoder", "text_encoder_2"))
    spec = ModelSpec(str(folder), offload="model")
    given: Any = {"device": torch.device("cpu"), "dtype": torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placing.warn_of_memory(folder, wanted.parts, spec, free=largest, **given)
    with pytest.warns(UserWarning, match="try --weights fp8$"):
        placing.warn_of_memory(folder, wanted.parts, spec, free=largest - 1, **given)
