"""Control networks: what diffusers' own pipelines for them draw, with the networks that are loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genpipe.checkpoints.errors import CheckpointError
from genpipe.metadata import read_made
from genpipe.pipeline import Pipeline
from tests.adapters.conftest import family_named
from tests.adapters.control_networks import NETWORKS, by_hand, network
from tests.adapters.test_images import picture
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it will drop one day

Save = Callable[[Family], Path]


@pytest.fixture
def controlled(folder_of: Save, tmp_path: Path) -> Callable[..., tuple[Pipeline, list[Any]]]:
    """Load a family with control networks."""

    def load(name: str, count: int = 1) -> tuple[Pipeline, list[Any]]:
        folder = folder_of(family_named(name))
        networks = [network(name, family_named(name).build(), seed) for seed in range(count)]
        for index, each in enumerate(networks):
            each.save_pretrained(tmp_path / str(index))
        paths = [tmp_path / str(index) for index in range(count)]
        return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", control_model=paths), networks

    return load


def asked(name: str) -> dict[str, Any]:
    return {**family_named(name).settings, "height": 32, "width": 32, "seed": 3, "progress": False}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_is_drawn_with_a_control_network_as_diffusers_does(name: str, controlled: Any, tmp_path: Path):
    pipeline, networks = controlled(name)
    picture((32, 32)).save(tmp_path / "shown.png")
    drawn = pipeline("a red cat", control=f"{tmp_path / 'shown.png'}:0.8", **asked(name))
    expected = by_hand(pipeline, name, networks, control_image=picture((32, 32)), controlnet_conditioning_scale=0.8)
    assert np.array_equal(np.asarray(drawn), expected)
    with pytest.warns(UserWarning, match="control_model has no effect without control"):
        without = pipeline("a red cat", **asked(name))
    assert not np.array_equal(np.asarray(without), expected)
    drawn.save(tmp_path / "drawn.png")
    made = read_made(tmp_path / "drawn.png").request
    assert np.array_equal(np.asarray(pipeline(made.pop("prompt"), progress=False, **made)), expected)


def test_it_acts_over_a_part_of_the_schedule(controlled: Any):
    pipeline, networks = controlled("Stable Diffusion 3")
    control = {"image": picture((32, 32)), "start": 0.0, "end": 0.5}
    drawn = np.asarray(pipeline("a red cat", control=[control], **{**asked("Stable Diffusion 3"), "steps": 4}))
    given = {"num_inference_steps": 4, "control_image": picture((32, 32))}
    assert np.array_equal(drawn, by_hand(pipeline, "Stable Diffusion 3", networks, **given, control_guidance_end=0.5))
    assert not np.array_equal(drawn, by_hand(pipeline, "Stable Diffusion 3", networks, **given))


def test_several_act_together(controlled: Any):
    pipeline, networks = controlled("Stable Diffusion 3", 2)
    shown = [picture((32, 32)), picture((32, 32)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    control = [{"image": shown[0], "scale": 0.5}, {"image": shown[1], "scale": 0.25}]
    drawn = pipeline("a red cat", control=control, **asked("Stable Diffusion 3"))
    given = {"control_image": shown, "controlnet_conditioning_scale": [0.5, 0.25]}
    assert np.array_equal(np.asarray(drawn), by_hand(pipeline, "Stable Diffusion 3", networks, **given))


def test_no_network_is_loaded_twice(controlled: Any):
    pipeline, _ = controlled("Stable Diffusion 3")
    adapted = pipeline.drawer.adapted
    twin = adapted.forms["control"].pipe
    assert all(twin.components[name] is part for name, part in adapted.pipe.components.items())


def test_what_cannot_be_controlled_is_an_error(controlled: Any, folder_of: Save, tiny_checkpoint: Path, tmp_path: Path):
    pipeline, _ = controlled("HunyuanDiT")
    shown = picture((32, 32))
    with pytest.raises(ValueError, match="control acts over the whole schedule in this model"):
        pipeline("a red cat", control=[{"image": shown, "end": 0.5}], **asked("HunyuanDiT"))
    with pytest.raises(ValueError, match=r"control is 2 image\(s\), and the model has 1 control model\(s\)"):
        pipeline("a red cat", control=[shown, shown], **asked("HunyuanDiT"))
    with pytest.raises(ValueError, match="guess is not for this model"):
        pipeline("a red cat", control=[shown], guess=True, **asked("HunyuanDiT"))
    with pytest.raises(ValueError, match="controlnet_conditioning_scale"):
        pipeline("a red cat", **{**asked("HunyuanDiT"), "arguments": {"controlnet_conditioning_scale": 2}})
    given: Any = {"device": "cpu", "dtype": "fp32", "control_model": tmp_path / "0"}
    with pytest.raises(ValueError, match="diffusers has no AuraFlowControlNetPipeline"):
        Pipeline.from_pretrained(folder_of(family_named("AuraFlow")), **given)
    with pytest.raises(ValueError, match=r"control is not for this model.*give its network \(control_model\)"):
        Pipeline.from_pretrained(folder_of(family_named("HunyuanDiT")), device="cpu")("a red cat", control=[shown])
    given["control_model"] = folder_of(family_named("AuraFlow")) / "transformer"
    with pytest.raises(CheckpointError, match="is a 'AuraFlowTransformer2DModel', not a control network"):
        Pipeline.from_pretrained(folder_of(family_named("HunyuanDiT")), **given)
    pipeline, _ = controlled("Stable Diffusion 3")
    with pytest.raises(ValueError, match="control over an image is not for models that diffusers draws"):
        pipeline("a red cat", control=[shown], image=shown, strength=0.5, **asked("Stable Diffusion 3"))
