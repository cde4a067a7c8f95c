"""What the denoisers of a pipeline of diffusers keep their weights in, so that they take less memory."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from genpipe.adapters.sizes import is_decoder
from genpipe.spec import ModelSpec

# Bits per number; of nf4 with the scale that 64 of them share.
_BITS = {"fp8": 8.0, "int8": 8.0, "nf4": 4.5, "bf16": 16.0}
# What is made of the weights as they are read, and the package that does so; others are widened layer by layer as they run.
_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def check_stored(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError unless weights can be kept as a spec says, on a device and of networks that run in a dtype."""
    package = _PACKAGES.get(spec.weights or "")
    if spec.weights == "bf16" and dtype.itemsize <= 2:
        raise ValueError("weights 'bf16' would save nothing: the networks run in 16 bits; leave it out")
    if spec.weights == "nf4" and device.type != "cuda":
        raise ValueError(f"weights 'nf4' is made by bitsandbytes on a GPU, and the device is {device}: use int8 or fp8")
    if package is not None and find_spec(package) is None:
        raise ValueError(
            f"weights {spec.weights!r} of a model that diffusers draws takes {package}: pip install 'genpipe[{spec.weights}]'"
        )


def bytes_per_number(spec: ModelSpec, dtype: torch.dtype) -> float:
    """What a number of a denoiser's weights takes in memory."""
    return dtype.itemsize if spec.weights is None else _BITS[spec.weights] / 8


def denoisers_in(parts: Mapping[str, tuple[str, str]]) -> list[str]:
    """The parts of a pipeline, by their folders, that are networks of diffusers' own, without what makes pixels of latents.

    Args:
        parts: (library, class) of each part.
    """
    import diffusers

    return [
        part
        for part, (_, name) in parts.items()
        if hasattr(getattr(diffusers, name, None), "enable_layerwise_casting") and not is_decoder(part)
    ]


def quantisation(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """How diffusers is to quantise a denoiser as it reads it; None where it is not."""
    if spec.weights == "int8":
        from diffusers.quantizers.quantization_config import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if spec.weights == "nf4":
        from diffusers.quantizers.quantization_config import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return None


def store(pipe: Any, spec: ModelSpec, dtype: torch.dtype) -> None:
    """Bring the denoisers of a loaded pipeline into fp8 or bf16, to be widened layer by layer as they run in a dtype."""
    if spec.weights in ("fp8", "bf16"):
        stored = torch.float8_e4m3fn if spec.weights == "fp8" else torch.bfloat16
        networks = {id(one): one for name, one in pipe.components.items() if not is_decoder(name)}
        for network in networks.values():
            if hasattr(network, "enable_layerwise_casting"):
                network.enable_layerwise_casting(
                    storage_dtype=stored, compute_dtype=dtype, skip_modules_pattern=_kept_wide(network)
                )


def _kept_wide(network: Any) -> tuple[str, ...]:
    """Patterns of the names of layers whose weights stay as they are: diffusers' own choice, and those that are asked for their dtype.

    Stable Cascade draws its noise in the dtype of its prior's first weights, and U-Nets bring an image's embedding, as of
    Kandinsky 2.2, into that of the layer which takes it.
    """
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    first = next(name for name, _ in network.named_parameters()).rpartition(".")[0]
    return (*DEFAULT_SKIP_MODULES_PATTERN, "^encoder_hid_proj", f"^{re.escape(first)}$")
