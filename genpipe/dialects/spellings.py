"""Other programs' names for what a row of a list of prompts says: diffusers', and A1111's web UI's and its API's."""

import re
from dataclasses import fields
from functools import lru_cache
from typing import Any

from genpipe.request import Request

# A name of theirs, in lower case and with underscores, and ours.
SPELLINGS = {
    "text": "prompt",
    "negative": "negative_prompt",
    "num_inference_steps": "steps",
    "cfg_scale": "guidance_scale",
    "cfgs": "guidance_scale",
    "sampler_name": "sampler",
    "n_iter": "n",
    "num_images_per_prompt": "n",
    "tiling": "tile",
    "subseed": "vary_seed",
    "subseed_strength": "vary",
}
# Of a row's own: `n` images, in batches of `batch_size` (A1111), of a `size` such as 512x768.
OURS = {field.name for field in fields(Request)} | {
    "n",
    "batch_size",
    "size",
    "file_name",
    "scheduler",
    "sampler_index",
}
# As A1111 writes it beside images: it counts the layer that is read from 1, so that it is one more than our clip_skip.
CLIP_SKIP = "Clip skip"
# Settings of A1111 and diffusers that genpipe does not have.
UNAVAILABLE = {
    *("styles", "restore_faces", "seed_resize_from_h", "seed_resize_from_w"),
    *("sd_model", "enable_hr", "override_settings", "eta", "prompt_for_display"),
    *("outpath_samples", "outpath_grids", "do_not_save_samples", "do_not_save_grid"),
}
# Values of theirs that ask for nothing.
_NOTHING = {"", "0", "0.0", "-1", "false", "none"}


@lru_cache(maxsize=4096)
def setting_name(name: str) -> str:
    """Give our name for a column or key, whatever its case and dashes: "CFG scale" is guidance_scale; others stay."""
    if name.strip().lower() == "clip skip":
        return CLIP_SKIP
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    plain = SPELLINGS.get(plain, plain)
    return plain if plain in OURS or plain in UNAVAILABLE else name.strip()


def asks_for_nothing(value: Any) -> bool:
    """Tell whether a setting that genpipe does not have is given as what it does anyway: restore_faces False."""
    if isinstance(value, list | dict):
        return not value
    return isinstance(value, str | int | float) and str(value).strip().lower() in _NOTHING
