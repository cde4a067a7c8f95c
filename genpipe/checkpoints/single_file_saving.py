"""Saving a checkpoint as a single file, in the layout that A1111, ComfyUI and diffusers' `from_single_file` read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genpipe.checkpoints import ldm_layout
from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.clip_tokenizer import clip_tokenizer
from genpipe.checkpoints.families import SD1, SD2, SDXL, SDXL_REFINER, TextForm
from genpipe.checkpoints.layout import Layout
from genpipe.checkpoints.shapes import open_clip_config, part, transformers_config, unet_config, vae_config
from genpipe.files import write_safetensors
from genpipe.models.text_encoder import TextEncoder

_ARCHITECTURES = {
    SD1.name: "stable-diffusion-v1",
    SD2.name: "stable-diffusion-v2-512",
    SDXL.name: "stable-diffusion-xl-v1-base",
    SDXL_REFINER.name: "stable-diffusion-xl-v1-refiner",
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")


def save_single_file(path: str | Path, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint into one safetensors file, whole or not at all.

    Such a file holds weights alone, so what reads it takes the rest as its family has it. A checkpoint of which that is
    not so is refused.

    Args:
        path: of the file; one that is there is replaced.
        checkpoint: plain, not prepared for drawing.
        dtype: of the stored weights, such as `torch.float16`; None keeps the networks' own.

    Raises:
        ValueError: the checkpoint has a tokenizer, a shape or a noise schedule that a single file cannot tell of, or
            weights that are not finite in `dtype`.
        OSError: the file cannot be written.
    """
    family, config = checkpoint.family, checkpoint.scheduler_config
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"a single file cannot say that its model predicts {prediction!r}: keep the folder")
    for key in _BETAS:
        if key in config and config[key] != family.scheduler_config[key]:
            raise ValueError(f"a single file cannot say that {key} is {config[key]!r}: keep the folder")
    state: dict[str, Tensor] = {}
    for form, encoder, tokenizer in zip(family.texts, checkpoint.text_encoders, checkpoint.tokenizers, strict=True):
        if tokenizer.vocabulary != clip_tokenizer(form.pad).vocabulary:
            raise ValueError(
                f"a single file cannot hold a tokenizer, and this one of {tokenizer.vocab_size} tokens is not CLIP's: "
                "keep the folder"
            )
        state |= _stored(encoder, _text_names(form, encoder), dtype)
    state |= _stored(checkpoint.unet, ldm_layout.unet(checkpoint.unet.config), dtype)
    state |= _stored(checkpoint.vae, ldm_layout.vae(len(checkpoint.vae.config.channels)), dtype)
    _check_told(checkpoint, {key: tuple(tensor.shape) for key, tensor in state.items()})
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[family.name],
        "modelspec.prediction_type": _PREDICTIONS[prediction],
    }
    if prediction == "v_prediction" and family.added_numbers:
        state["v_pred"] = torch.zeros(0)
        if config.get("rescale_betas_zero_snr"):
            state["ztsnr"] = torch.zeros(0)
    write_safetensors(Path(path), state, metadata)


def _text_names(form: TextForm, encoder: TextEncoder) -> Layout:
    prefix, projected = form.prefixes[0], encoder.config.projection_dim is not None
    if form.open_clip:
        layers = encoder.config.num_hidden_layers
        return ldm_layout.open_clip(form.folder, prefix, layers=layers, projected=projected)
    return ldm_layout.transformers_text(form.folder, prefix, projected=projected)


def _stored(network: nn.Module, names: Layout, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A network's tensors under their names in the file, and in the form that it holds them in."""
    state: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.to(device="cpu", dtype=dtype).contiguous()
        if not bool(stored.isfinite().all()):
            raise ValueError(f"{names.folder}: {name} is not finite in {stored.dtype}: it cannot be saved so")
        key, _, mark = names.theirs(name).partition("#")
        if mark.isdigit():
            thirds.setdefault(key, {})[mark] = stored
        elif mark == "T":
            state[key] = stored.T.contiguous()
        elif mark == "C" and stored.ndim == 2:
            state[key] = stored[..., None, None]
        else:
            state[key] = stored
    return state | {key: torch.cat([of[mark] for mark in sorted(of)]) for key, of in thirds.items()}


def _check_told(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the configs which a reader of the file takes are the checkpoint's."""
    family, unet, vae = checkpoint.family, checkpoint.unet.config, checkpoint.vae.config
    within = part(shapes, ldm_layout.UNET_PREFIX)
    read = unet_config(within, heads=family.heads, sample_size=64, upcast=unet.upcast_attention)
    # The trained size is only a default, and a config may give a depth where there are no transformers.
    told: list[tuple[Any, Any]] = [
        (replace(unet, sample_size=64, depth=read.depth, depth_up=read.depth_up), read),
        (
            vae,
            vae_config(
                part(shapes, ldm_layout.VAE_PREFIX), scaling_factor=family.scaling_factor, sample_size=vae.sample_size
            ),
        ),
    ]
    for form, encoder in zip(family.texts, checkpoint.text_encoders, strict=True):
        within = part(shapes, form.prefixes[0])
        config = (
            open_clip_config(within, projected=form.projected)
            if form.open_clip
            else transformers_config(within, activation=form.activation, projected=form.projected)
        )
        # Older configs name a wrong end of the text, which the encoder takes for "the largest id": CLIP's is that.
        told.append((replace(encoder.config, eos_token_id=config.eos_token_id), config))
    for own, read in told:
        if own != read:
            different = [name for name in vars(own) if getattr(own, name) != getattr(read, name)]
            name = different[0]
            raise ValueError(
                f"a single file cannot say that {name} is {getattr(own, name)!r} (it reads as {getattr(read, name)!r}): "
                "keep the folder"
            )
