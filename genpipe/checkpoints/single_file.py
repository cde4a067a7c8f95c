"""Single files: a whole checkpoint in one file, in the layout of CompVis, A1111 and ComfyUI, read without any config.

Its family follows from the names and shapes of its tensors, its configs from the shapes and the family, and the tokenizer
is CLIP's, which ships with genpipe: nothing is ever fetched.
"""

import re
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genpipe.checkpoints import layout, ldm_layout
from genpipe.checkpoints.checkpoint import Stored
from genpipe.checkpoints.clip_tokenizer import clip_tokenizer
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import FAMILIES, SD1, SD2, SDXL, SDXL_REFINER, Family, TextForm
from genpipe.checkpoints.parts import Part, Parts, TextPart
from genpipe.checkpoints.recognition import (
    CHECKPOINT,
    CONTROLNET,
    EMBEDDING,
    FLUX,
    IMAGE_ENCODER,
    IP_ADAPTER,
    LORA,
    OTHER,
    SD3,
    T2I_ADAPTER,
    TEXT_ENCODER,
    UNET,
    VAE,
    describe,
    kind_of,
)
from genpipe.checkpoints.shapes import Shapes, open_clip_config, part, transformers_config, unet_config, vae_config
from genpipe.checkpoints.tensors import TensorFile, is_companion, open_tensors, shapes_of
from genpipe.messages import listed
from genpipe.models.vae import VAEConfig

# What training, other programs and older years leave beside the networks.
_HARMLESS = re.compile(
    r"model_ema\..*|safety_checker\..*|(denoiser\.)?(sigmas|log_sigmas)|(model\.|)(betas|alphas_cumprod\w*)|global_step|epoch"
    r"|(sqrt_|log_|posterior_)\w+|logvar|lvlb_weights|scale_factor|(cond_stage_model|conditioner\.embedders\.\d)\.logit_scale"
    r"|v_pred|ztsnr|model_sampling\..*"
)
_HINTS = {
    LORA: "give it with loras= (--lora)",
    CONTROLNET: "give it with control_model= (--control-model), beside a model",
    T2I_ADAPTER: "give it with control_model= (--control-model), beside a model",
    IP_ADAPTER: "give it with ip_adapter= (--ip-adapter), beside a model",
    IMAGE_ENCODER: "give it with image_encoder= (--image-encoder), beside an IP-Adapter",
    VAE: "give it with vae= (--vae), beside a model",
    TEXT_ENCODER: "give it with text_encoder= (--text-encoder), beside a model",
    EMBEDDING: "give it with embeddings= (--embeddings), beside a model",
}
# Kinds that diffusers draws, and what has the other parts of them.
_BASES = {
    FLUX: "black-forest-labs/FLUX.1-dev",
    SD3: "stabilityai/stable-diffusion-3.5-large",
    OTHER: "FOLDER_OR_HUB_ID",
}
# A mean spread of this bias above which a U-Net of Stable Diffusion 2 predicts the velocity (ComfyUI's rule).
_SPREAD = 0.09
_V768 = 96  # the latent size that Stable Diffusion 2 was trained at for the velocity


def file_parts(path: Path, *, allow_pickle: bool = False) -> Parts:
    """The parts of the checkpoint in one file; the autoencoder and the text encoders may be missing.

    Args:
        path: a safetensors file, a `.gguf`, or with `allow_pickle` a `.ckpt`.
        allow_pickle: read tensors from a pickle, by torch's reader that runs no code.

    Raises:
        CheckpointError: the file is corrupt, is no model (says what it is), or is of no family that genpipe runs.
    """
    file = open_tensors(path, allow_pickle=allow_pickle)
    shapes = shapes_of(file)
    kind = kind_of(shapes)
    if kind in _BASES:
        raise CheckpointError(
            f"{path} is {describe(kind)}: give the folder or hub id that has its other parts with base= "
            f"(--base {_BASES[kind]})"
        )
    if kind not in (CHECKPOINT, UNET):
        hint = f": {_HINTS[kind]}" if kind in _HINTS else ""
        raise CheckpointError(f"{path} is {describe(kind)}, not a model{hint}")
    prefix = (
        ldm_layout.UNET_PREFIX if kind == CHECKPOINT else "unet." if any(k.startswith("unet.") for k in shapes) else ""
    )
    within = part(shapes, prefix)
    try:
        _check_supported(shapes, within)
        family = family_in(shapes, within)
        velocity = _predicts_velocity(file, family, within, prefix)
        upcast = family is SD2 and velocity
        size = _V768 if upcast else family.sample_size
        config = unet_config(within, heads=family.heads, sample_size=size, upcast=upcast)
        held = {text.prefix: text for text in texts_in(file, allow_pickle=allow_pickle)}
        found = [held[prefix].part(form) for form in family.texts for prefix in form.prefixes if prefix in held]
        vae = (
            vae_part(file, family, size=8 * size, allow_pickle=allow_pickle)
            if _vae_prefix(shapes) is not None
            else None
        )
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the tensor {error.args[0]}, or is no model of its family") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    names = (
        ldm_layout.unet(config, prefix) if "input_blocks.0.0.weight" in within else replace(layout.UNET, prefix=prefix)
    )
    known = (names, *(text.stored.names for text in found), *(() if vae is None else (vae.stored.names,)))
    _warn_of_unknown(file, tuple(each.prefix for each in known))
    return Parts(
        texts=tuple(found) if len(found) == len(family.texts) else (),
        unet=Part(config, Stored((path,), names, allow_pickle), str(path)),
        vae=vae,
        scheduler_config=_scheduler_config(shapes, family, velocity),
        defaults={},
        source=str(path),
        family=family,
    )


def family_in(shapes: Shapes, unet: Shapes) -> Family:
    """The family of a single file.

    Args:
        shapes: of all its tensors.
        unet: of those of its U-Net, without their prefix.

    Raises:
        ValueError: it holds the text encoders of two families.
    """
    prefixes = {prefix for family in FAMILIES for form in family.texts for prefix in form.prefixes}
    present = {prefix for prefix in prefixes if any(key.startswith(prefix) for key in shapes)}
    context = next((shape[1] for key, shape in unet.items() if key.endswith("attn2.to_k.weight")), None)
    if any(key.startswith(("label_emb.", "add_embedding.")) for key in unet):
        only = ldm_layout.ONLY_TEXT in present
        family = SDXL_REFINER if only or context == SDXL_REFINER.context_channels else SDXL
    else:
        second = present & {ldm_layout.SD2_TEXT, ldm_layout.ONLY_TEXT}
        family = SD2 if second or context == SD2.context_channels else SD1
    foreign = present - {prefix for form in family.texts for prefix in form.prefixes}
    if foreign:
        raise ValueError(
            f"it holds the U-Net of {family.title}, and a text encoder of another family under {', '.join(sorted(foreign))}"
        )
    return family


def vae_part(file: TensorFile, family: Family, *, size: int, allow_pickle: bool = False) -> Part[VAEConfig]:
    """The autoencoder in a file: in a whole checkpoint's, or alone in its own, by CompVis' names or by diffusers'.

    Args:
        file: that holds it.
        family: whose latents it is to decode: tensors do not tell the scale of latents.
        size: of the images that it was trained on, in pixels.

    Raises:
        CheckpointError: there is no autoencoder in the file.
        KeyError: a tensor that every autoencoder has is missing.
    """
    shapes = shapes_of(file)
    prefix = _vae_prefix(shapes)
    if prefix is None:
        raise CheckpointError(f"{file.path} is {describe(kind_of(shapes))}, not a VAE")
    within = part(shapes, prefix)
    config = vae_config(within, scaling_factor=family.scaling_factor, sample_size=size)
    compvis = any(key.startswith("encoder.down.") for key in within)
    names = ldm_layout.vae(len(config.channels), prefix) if compvis else replace(layout.VAE, prefix=prefix)
    return Part(config, Stored((file.path,), names, allow_pickle), str(file.path))


@dataclass(frozen=True)
class TextTensors:
    """A text encoder's tensors in a file: in a whole checkpoint's, or alone in its own.

    Attributes:
        file: that holds them.
        prefix: what their names begin with.
        open_clip: whether they go on as OpenCLIP calls them, or else as transformers does.
    """

    file: TensorFile
    prefix: str
    open_clip: bool
    allow_pickle: bool = False

    @property
    def width(self) -> int:
        """Of the vectors that it gives."""
        embedding = next(shape for key, shape in self._shapes.items() if key.endswith("token_embedding.weight"))
        return embedding[1]

    def part(self, form: TextForm) -> TextPart:
        """The text encoder, to stand where a family has one of that form.

        Raises:
            KeyError: a tensor that every text encoder has is missing.
        """
        if self.open_clip:
            config = open_clip_config(self._shapes, projected=form.projected)
            names = ldm_layout.open_clip(
                form.folder, self.prefix, layers=config.num_hidden_layers, projected=form.projected
            )
        else:
            config = transformers_config(self._shapes, activation=form.activation, projected=form.projected)
            names = ldm_layout.transformers_text(form.folder, self.prefix, projected=form.projected)
        tokenizer = clip_tokenizer(form.pad, config.max_position_embeddings)
        return TextPart(config, Stored((self.file.path,), names, self.allow_pickle), str(self.file.path), tokenizer)

    @cached_property
    def _shapes(self) -> Shapes:
        return part(shapes_of(self.file), self.prefix)


def texts_in(file: TensorFile, *, allow_pickle: bool = False) -> list[TextTensors]:
    """The text encoders in a file, whatever family they are of; [] if there are none."""
    forms = {prefix: form.open_clip for family in FAMILIES for form in family.texts for prefix in form.prefixes}
    if kind_of(shapes_of(file)) == TEXT_ENCODER:
        forms = {"": "positional_embedding" in file.entries}
    found = (TextTensors(file, prefix, open_clip, allow_pickle) for prefix, open_clip in forms.items())
    return [each for each in found if any(key.endswith("token_embedding.weight") for key in each._shapes)]


def _vae_prefix(shapes: Shapes) -> str | None:
    """What the names of an autoencoder's tensors begin with; None if there is none."""
    prefixes = (ldm_layout.VAE_PREFIX, "vae.", "")
    return next((prefix for prefix in prefixes if f"{prefix}decoder.conv_in.weight" in shapes), None)


def _check_supported(shapes: Shapes, unet: Shapes) -> None:
    """Refuse, by name, relatives of the families whose networks look alike but mean something else, and two in one."""
    if "input_blocks.0.0.weight" in unet and any(re.match(r"(unet\.)?down_blocks\.\d", key) for key in shapes):
        raise ValueError("it holds two U-Nets, one in diffusers' names")
    if "edm_mean" in shapes:
        raise ValueError("it is Playground v2.5 (edm_mean), whose noise schedule genpipe does not have")
    if "edm_vpred.sigma_max" in shapes:
        raise ValueError("it is CosXL (edm_vpred), whose noise schedule genpipe does not have")
    if "label_emb.weight" in unet:
        raise ValueError("it is the x4 upscaler of Stable Diffusion, which genpipe does not run")
    if "label_emb.0.0.weight" in unet and any(key.startswith("embedder.") for key in shapes):
        raise ValueError(
            "it is Stable Diffusion unCLIP, which takes an image's embedding and which genpipe does not run"
        )


def _predicts_velocity(file: TensorFile, family: Family, unet: Shapes, prefix: str) -> bool:
    """Whether the U-Net predicts the velocity: by a YAML file beside it, its markers, its metadata, or its weights."""
    config = file.path.with_suffix(".yaml")
    if config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        return bool(re.search(r"parameterization:\s*[\"']?v\b|VScaling", text))
    if "v_pred" in file.entries:
        return True
    if stated := file.metadata.get("modelspec.prediction_type"):
        return stated in ("v", "v_prediction")
    if family is not SD2 or unet["input_blocks.0.0.weight"][1] != unet["out.2.weight"][0]:
        return False
    last = max(int(key.split(".")[1]) for key in unet if key.startswith("output_blocks."))
    bias = file.tensor(f"{prefix}output_blocks.{last}.1.transformer_blocks.0.norm1.bias").float()
    return bool(bias.std(correction=0) > _SPREAD)


def _scheduler_config(shapes: Shapes, family: Family, velocity: bool) -> dict[str, Any]:
    config = {**family.scheduler_config, "prediction_type": "v_prediction" if velocity else "epsilon"}
    if velocity and family is SD2:
        config["_class_name"] = "DDIMScheduler"
        config.pop("skip_prk_steps")
    if velocity and "ztsnr" in shapes:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _warn_of_unknown(file: TensorFile, prefixes: tuple[str, ...]) -> None:
    unknown = [
        key
        for key in file.entries
        if not key.startswith(prefixes) and not _HARMLESS.fullmatch(key) and not is_companion(file, key)
    ]
    if unknown:
        warnings.warn(f"{file.path}: no network takes {listed(sorted(unknown))}", stacklevel=4)
