"""Weights in less memory: what they are kept in, where, and what is said where there is not enough of it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genpipe.adapters import placing
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


def test_int8_is_refused_by_name(folder_of: Save):
    with pytest.raises(ValueError, match="weights 'int8' are not for models that diffusers draws: use fp8 or bf16"):
        Pipeline.from_pretrained(folder_of(family_named(FLUX)), device="cpu", weights="int8")


def test_offload_is_not_for_genpipes_own_networks(tiny_checkpoint: Path):
    with pytest.raises(ValueError, match="offload is for models that diffusers draws"):
        Pipeline.from_pretrained(tiny_checkpoint, device="cpu", offload="group")


@pytest.mark.parametrize(
    ("options", "factor", "fixes"),
    [({}, 1.0, "try --offload model or --weights fp8"), ({"weights": "fp8"}, 0.5, "try --offload model")],
)
def test_memory_that_is_short_is_told_before_loading(options: Any, factor: float, fixes: str, folder_of: Save):
    folder = folder_of(family_named(FLUX))
    parts = ["transformer", "vae", "text_encoder", "text_encoder_2"]
    weights = sum(path.stat().st_size for part in parts for path in (folder / part).glob("*.safetensors"))
    spec, device = ModelSpec(str(folder), **options), torch.device("cpu")

    def warn(free: int) -> None:
        placing.warn_of_memory(folder, parts, spec, device=device, dtype=torch.float32, free=free)

    with pytest.warns(UserWarning, match=rf"the weights take about .* GB, and .* GB are free on cpu: {fixes}$"):
        warn(int(weights * factor * 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(2 * weights)


def test_a_model_that_is_offloaded_needs_room_for_its_largest_part(folder_of: Save):
    folder = folder_of(family_named(FLUX))
    parts = ["transformer", "vae", "text_encoder", "text_encoder_2"]
    sizes = [sum(path.stat().st_size for path in (folder / part).glob("*.safetensors")) for part in parts]
    spec = ModelSpec(str(folder), offload="model")
    given: Any = {"device": torch.device("cpu"), "dtype": torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placing.warn_of_memory(folder, parts, spec, free=max(sizes), **given)
    with pytest.warns(UserWarning, match="try --weights fp8$"):
        placing.warn_of_memory(folder, parts, spec, free=max(sizes) // 2, **given)
