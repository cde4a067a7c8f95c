"""The requests that a call of a pipeline asks for, held to what its model can do."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from genpipe.fit import Traits, complete, ignored
from genpipe.lora_tags import named_in
from genpipe.request import Request
from genpipe.seeds import expand, varied


def make_requests(
    prompt: str | Sequence[str],
    settings: Mapping[str, Any],
    traits: Traits,
    *,
    defaults: Mapping[str, Any],
    lora_dir: str | None,
    n: int = 1,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    stacklevel: int = 2,
) -> list[Request]:
    """Give the validated requests of one call, defaults filled in; see `Pipeline.__call__` for arguments and errors.

    Args:
        settings: of all images; what is None or left out is the model's.
        traits: of the model.
        defaults: the model's.
        lora_dir: where LoRAs lie that prompts name.
        stacklevel: of the warnings of settings that have no effect with this model.
    """
    images = expand(prompt, n=n, seed=seed, seeds=seeds)
    first = complete(settings, traits, defaults)  # so that files are read once
    if first.vary and seeds is None:
        images = [(text, images[0][1]) for text, _ in images]
    requests = []
    for text, own in images:
        plain, named = named_in(text, lora_dir)
        requests.append(replace(first, prompt=plain, seed=own, loras=(*first.loras, *named)))
    requests = varied(requests)
    for line in ignored(requests, traits):
        warnings.warn(line, stacklevel=stacklevel)
    if seed is None and seeds is None:
        print(f"seed {requests[0].seed}", file=sys.stderr)
    return requests
