"""Tiny control networks, and what diffusers draws with them by its own pipelines."""

from importlib import import_module
from typing import Any

import numpy as np
import torch

from genpipe.pipeline import Pipeline
from genpipe.pipeline.wrapped import WrappedDrawer
from tests.adapters.conftest import family_named
from tests.adapters.tiny import seeded

# The class of a family's control networks, and what they have beside the config of its transformer.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Stable Diffusion 3": ("SD3ControlNetModel", {"extra_conditioning_channels": 0}),
    "FLUX.1 dev": ("FluxControlNetModel", {}),
    "FLUX.1 schnell": ("FluxControlNetModel", {}),
    "Sana": ("SanaControlNetModel", {"num_layers": 1}),
    "Qwen-Image": ("QwenImageControlNetModel", {"extra_condition_channels": 0}),
    "HunyuanDiT": ("HunyuanDiT2DControlNetModel", {"transformer_num_layers": 4}),
    "Z-Image": (
        "ZImageControlNetModel",
        {"control_layers_places": [0, 1], "control_refiner_layers_places": [0], "control_in_dim": 4},
    ),
}


def network(name: str, pipe: Any, seed: int = 0) -> Any:
    """A control network of random weights, none of them zero."""
    kind, given = NETWORKS[name]
    config = {**pipe.transformer.config, **given}
    made = seeded(lambda: getattr(import_module("diffusers"), kind).from_config(config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.5)
    return made


def by_hand(pipeline: Pipeline, name: str, networks: list[Any], **given: Any) -> np.ndarray:
    """What diffusers draws with its own pipeline for control networks."""
    assert isinstance(pipeline.drawer, WrappedDrawer)
    pipe = pipeline.drawer.adapted.pipe
    kind = getattr(import_module("diffusers"), type(pipe).__name__.replace("Pipeline", "ControlNetPipeline"))
    more = {"requires_safety_checker": False} if name == "HunyuanDiT" else {}
    twin = kind(**pipe.components, **more, controlnet=networks if len(networks) > 1 else networks[0])
    twin.set_progress_bar_config(disable=True)
    family = family_named(name)
    scale = {"guidance_scale": pipeline.defaults()["guidance_scale"]} if name != "Qwen-Image" else {}
    generator = torch.Generator("cpu").manual_seed(3)
    keywords = {"height": 32, "width": 32, **scale, **family.by_hand, **given}
    torch.manual_seed(3)  # from which the encoding of the control image draws, in some families
    made = twin(prompt="a red cat", generator=generator, **keywords)
    return np.asarray(made.images[0].convert("RGB"))
