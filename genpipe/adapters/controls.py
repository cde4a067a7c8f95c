"""Control networks beside a pipeline of diffusers: their loading, and what a call is told of their images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from genpipe.adapters.fetching import chosen_weights
from genpipe.adapters.whole import check_whole
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.hub import Repository
from genpipe.checkpoints.source import Folder, Source, read_json
from genpipe.inputs import Control
from genpipe.messages import one_line, quoted
from genpipe.spec import ModelSpec

CONFIG = "config.json"
SCALE, START, END = "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"


def fetched_control(source: Source, spec: ModelSpec) -> Folder:
    """Give the folder of a control network that is alone in a folder or in a repository, whose files are fetched.

    Raises:
        CheckpointError: a file cannot be fetched.
    """
    if isinstance(source, Repository):
        for file in (CONFIG, *chosen_weights(source.listing(""), spec)):
            if source.find(file) is None:
                raise CheckpointError(source.lacks(file))
        source = Folder(source.root)
    assert isinstance(source, Folder)
    return source


def load_control(source: Folder, spec: ModelSpec, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a control network from its folder.

    Args:
        source: where it is.
        spec: variant and allow_pickle count.
        device, dtype: where and in what it runs.

    Raises:
        CheckpointError: it is not whole, or none that diffusers has.
    """
    import diffusers

    name = read_json(source, CONFIG, lambda config: str(config["_class_name"]))
    kind: Any = getattr(diffusers, name, None)
    if "ControlNet" not in name or not hasattr(kind, "from_pretrained"):
        raise CheckpointError(f"{source} is a {quoted(name)}, not a control network of the installed diffusers")
    safe = None if spec.allow_pickle else True
    try:
        network = kind.from_pretrained(
            source.root, torch_dtype=dtype, variant=spec.variant, use_safetensors=safe, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source} cannot be loaded: {one_line(str(error), 300)}") from error
    check_whole({"network": network}, str(source))
    return network.to(device)


def told_of(
    controls: Sequence[Control], images: Sequence[Image.Image], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the arguments that tell a call of its control images.

    Args:
        controls: how each acts.
        images: what they show, of the size that is drawn.
        parameters: those that the call takes.

    Raises:
        ValueError: an image is to act over a part of the schedule, and the pipeline has it act over all of it.
    """
    values = {
        SCALE: [one.scale for one in controls],
        START: [one.start for one in controls],
        END: [one.end for one in controls],
    }
    if START not in parameters and any((one.start, one.end) != (0.0, 1.0) for one in controls):
        raise ValueError("control acts over the whole schedule in this model: leave out its start and end")
    given = {"control_image": list(images), **{name: each for name, each in values.items() if name in parameters}}
    return {name: each[0] for name, each in given.items()} if len(controls) == 1 else given
