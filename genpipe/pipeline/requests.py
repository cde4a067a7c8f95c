"""The requests that a call of a pipeline asks for, held to what its model can do."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from genpipe.checkpoints import Checkpoint
from genpipe.fields import refuse_unknown
from genpipe.fit import check_fits, defaults_for, ignored, size_of_image
from genpipe.lora_tags import named_in
from genpipe.pipeline.networks import shown_beside
from genpipe.request import Request
from genpipe.seeds import expand, varied


def make_requests(
    checkpoint: Checkpoint,
    prompt: str | Sequence[str],
    settings: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    lora_dir: str | None,
    refines: bool,
    n: int = 1,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    stacklevel: int = 2,
) -> list[Request]:
    """Give the validated requests of one call, defaults filled in; see `Pipeline.__call__` for arguments and errors.

    Args:
        checkpoint: the model.
        settings: of all images; what is None or left out is the model's.
        defaults: the model's.
        lora_dir: where LoRAs lie that prompts name.
        refines: whether there is a refiner.
        stacklevel: of the warnings of settings that have no effect with this model.
    """
    given = dict(settings)
    refuse_unknown(Request, given, "a request")
    images = expand(prompt, n=n, seed=seed, seeds=seeds)
    if given.get("vary") and seeds is None:
        images = [(text, images[0][1]) for text, _ in images]
    factor = tile_factor(checkpoint) if given.get("tile") else checkpoint.vae.config.factor
    given |= size_of_image(given, factor)
    given |= {key: value for key, value in defaults_for(given, defaults).items() if given.get(key) is None}
    checked = Request.check_settings(given)  # so that files are read once
    given = {name: getattr(checked, name) for name in given}
    requests = []
    for text, own in images:
        plain, named = named_in(text, lora_dir)
        requests.append(Request(prompt=plain, seed=own, **{**given, "loras": (*given.get("loras", ()), *named)}))
    requests = varied(requests)
    controls, refers = len(checkpoint.controls), checkpoint.references is not None
    layers = min(len(each.layers) for each in checkpoint.text_encoders)
    check_fits(requests[0], factor=factor, layers=layers, controls=controls, refers=refers)
    distilled = checkpoint.unet.config.guidance_channels is not None
    for line in ignored(
        requests,
        distilled=distilled,
        sizes=checkpoint.family.added_numbers,
        refines=refines,
        controls=controls,
        refers=refers,
        shown=shown_beside(checkpoint),
    ):
        warnings.warn(line, stacklevel=stacklevel)
    if seed is None and seeds is None:
        print(f"seed {requests[0].seed}", file=sys.stderr)
    return requests


def tile_factor(checkpoint: Checkpoint) -> int:
    """Give what sides of images without edges are multiples of, in pixels: no map of the U-Net may have an odd side."""
    return checkpoint.vae.config.factor * 2 ** (len(checkpoint.unet.config.channels) - 1)
