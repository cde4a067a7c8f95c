"""A1111's HTTP API: the bodies of txt2img and img2img, read."""

from collections.abc import Mapping
from typing import Any

from genpipe.dialects.spellings import UNAVAILABLE, asks_for_nothing, setting_name
from genpipe.messages import quoted
from genpipe.sampling.names import canonical_name

# What changes no image: how it is kept and sent.
_ASIDE = (
    *("do_not_save_", "save_images", "send_images", "include_init_images", "override_settings_restore_afterwards"),
    *("script_args", "comments", "force_task_id", "infotext", "inpaint_full_res_padding"),
)
# What genpipe does not have, with the values that ask for what is done anyway, beside those that ask for nothing.
_USUAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("s_churn", "s_tmax", "s_tmin", "firstphase_width", "firstphase_height", "resize_mode"), ()),
    **dict.fromkeys(("refiner_checkpoint", "refiner_switch_at", "latent_mask", "firstpass_image"), ()),
    **dict.fromkeys(("eta", "s_noise", "initial_noise_multiplier"), (1,)),
    "image_cfg_scale": (1.5,),
    "disable_extra_networks": (),
}
# Of the second pass.
_SAME = ("Use same checkpoint", "Use same sampler", "Use same scheduler", "Use same choices", "Automatic")
_ENLARGED = ("lanczos", "none", "")
_OTHERS = {"script_name", "alwayson_scripts", "sampler_index", "denoising_strength"}


def read_body(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Read the body of txt2img or img2img.

    Args:
        given: as JSON gave it.

    Returns:
        What it says by our names, images as they came; the names of styles; and what is not done as it asks, one line each.

    Raises:
        ValueError: it asks for what genpipe does not have.
    """
    found: dict[str, Any] = {}
    lines: list[str] = []
    count = 1
    for key, value in given.items():
        name = setting_name(key)
        if (
            value is None
            or name in ("styles", "override_settings", "init_images", "inpainting_mask_invert")
            or key in _OTHERS
        ):
            continue
        if key == "inpaint_full_res":
            if value and given.get("mask") is not None:
                lines.append("inpaint_full_res is not available: the image is changed at its own size")
        elif key == "inpainting_fill":
            if value != 1 and given.get("mask") is not None:
                lines.append(f"inpainting_fill {quoted(value)} is not available: what is there is what it begins from")
        elif key in _USUAL:
            if not asks_for_nothing(value) and value not in _USUAL[key]:
                lines.append(f"{key} {quoted(value)} has no effect: genpipe does not have it")
        elif key.startswith("hr_"):
            continue
        elif name in ("n", "batch_size"):
            count *= _whole(key, value)
        elif key in ("subseed", "subseed_strength", "enable_hr"):
            continue
        elif name in UNAVAILABLE:
            if not asks_for_nothing(value):
                raise ValueError(f"{key} {quoted(value)} is not available in genpipe: leave it out")
        elif not key.startswith(_ASIDE):
            found[name] = value
    if found.get("seed") == -1:
        del found["seed"]
    found["n"] = count
    if given.get("subseed_strength"):
        found["vary"] = given["subseed_strength"]
        if given.get("subseed", -1) != -1:
            found["vary_seed"] = given["subseed"]
    if given.get("enable_hr"):
        found |= {"upscale": given.get("hr_scale", 2), "upscale_strength": given.get("denoising_strength")}
        lines += _hires(given, found)
    _scripts(given)
    _sampler(given, found)
    _override(given.get("override_settings") or {}, found)
    _images(given, found)
    styles = given.get("styles") or []
    if not isinstance(styles, list) or not all(isinstance(one, str) for one in styles):
        raise ValueError(f"styles must be a list of names, not {quoted(styles)}")
    return found, styles, lines


def _hires(given: Mapping[str, Any], found: dict[str, Any]) -> list[str]:
    """Take by what the second pass enlarges, and say what else of it is not done as it asks."""
    upscaler = str(given.get("hr_upscaler") or "")
    if "latent" in upscaler.lower():
        found["upscale_by"] = "latents"
    lines = []
    if "latent" not in upscaler.lower() and upscaler.lower() not in _ENLARGED:
        lines.append(f"hr_upscaler {quoted(upscaler)} is not available: it is enlarged by Lanczos")
    for key, value in given.items():
        if not key.startswith("hr_") or key in ("hr_scale", "hr_upscaler") or value is None:
            continue
        if not asks_for_nothing(value) and value not in _SAME:
            lines.append(f"{key} {quoted(value)} has no effect: genpipe does not have it")
    return lines


def _scripts(given: Mapping[str, Any]) -> None:
    for name, script in (given.get("alwayson_scripts") or {}).items():
        if not isinstance(script, Mapping) or any(script.get("args") or ()):
            raise ValueError(f"the script {quoted(name)} is not available in genpipe: leave it out")
    if given.get("script_name"):
        raise ValueError(f"the script {quoted(given['script_name'])} is not available in genpipe: leave it out")


def _sampler(given: Mapping[str, Any], found: dict[str, Any]) -> None:
    name = found.pop("sampler", None) or given.get("sampler_index")
    spacing = found.pop("scheduler", None)
    if not name:
        return
    if not isinstance(spacing, str) or spacing.lower() in ("", "automatic"):
        found["sampler"] = canonical_name(name)
    else:
        found["sampler"] = canonical_name(f"{name} {spacing}")


def _override(settings: Any, found: dict[str, Any]) -> None:
    if not isinstance(settings, Mapping):
        raise ValueError(f"override_settings must be an object, not {quoted(settings)}")
    for name, value in settings.items():
        if name == "sd_model_checkpoint":
            found["model"] = value
        elif name == "CLIP_stop_at_last_layers":
            found["clip_skip"] = max(0, _whole(name, value) - 1)
        elif name == "samples_format":
            found["format"] = value
        else:
            raise ValueError(f"the setting {quoted(name)} is not available in genpipe: leave it out")


def _images(given: Mapping[str, Any], found: dict[str, Any]) -> None:
    images = given.get("init_images") or []
    if not images:
        return
    if not isinstance(images, list) or len(images) != 1:
        raise ValueError("init_images must be a list of one image")
    found["image"] = images[0]
    if given.get("denoising_strength") is not None:
        found["strength"] = given["denoising_strength"]
    if found.get("mask") is None:
        found.pop("mask_blur", None)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        raise ValueError(f"{name} must be a whole number from 1 on, not {quoted(value)}")
    return value
