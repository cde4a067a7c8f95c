"""Which form the networks take on a CUDA device, by what the device and the installation can do, never by a card's name."""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from genpipe.models.cuda.graphs import Graphs
from genpipe.models.denoiser import Evaluate, evaluate
from genpipe.models.unet import UNet

# The oldest compute capability that the kernels are for (Ampere: the first with bf16).
CAPABILITY = (8, 0)


@dataclass(frozen=True)
class CudaForms:
    """The form of the networks on a CUDA device; the default is plain torch.

    Attributes:
        channels_last: keep the channels of a pixel side by side, as tensor cores read them.
        kernels: fuse what lies between the products (`genpipe.models.cuda.modules`); it needs `channels_last`.
        graphs: replay the U-Net's evaluations as CUDA graphs (`genpipe.models.cuda.graphs`).
        compiled: compile the U-Net's blocks, in the place of the kernels (`genpipe.models.cuda.compiled`).
        fp8: multiply in fp8 what follows the norms of transformer blocks (`genpipe.models.cuda.fp8`); it needs `kernels`,
            and changes images.
    """

    channels_last: bool = False
    kernels: bool = False
    graphs: bool = False
    compiled: bool = False
    fp8: bool = False


PLAIN = CudaForms()
CHANNELS_LAST = replace(PLAIN, channels_last=True)
KERNELS = replace(CHANNELS_LAST, kernels=True)
GRAPHS = replace(KERNELS, graphs=True)
NAMED = {
    "plain": PLAIN,
    "channels_last": CHANNELS_LAST,
    "kernels": KERNELS,
    "graphs": GRAPHS,
    "fp8": replace(GRAPHS, fp8=True),
}


def best_forms(device: torch.device, dtype: torch.dtype, *, compiled: bool = False, fp8: bool = False) -> CudaForms:
    """Choose the form that is fastest on a CUDA device in a dtype, with compiled blocks or fp8 where they are asked for."""
    nvidia = torch.version.cuda is not None
    kernels = (
        nvidia
        and dtype != torch.float32
        and torch.cuda.get_device_capability(device) >= CAPABILITY
        and runs_kernels(device)
    )
    # Without the kernels channels_last is slower: torch's norms read it badly.
    return CudaForms(channels_last=kernels or compiled, kernels=kernels, graphs=nvidia, compiled=compiled, fp8=fp8)


def runs_kernels(device: torch.device, attempt: Callable[[torch.device], bool] | None = None) -> bool:
    """Whether Triton, which the kernels are written in, is installed and compiles one for this device; else it warns.

    `attempt` runs one, and says whether its result is right.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        return (_add_ones if attempt is None else attempt)(device)
    except Exception as error:  # noqa: BLE001 - a compiler that is missing or too old, a driver, a cache without room, …
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        warnings.warn(f"Triton compiles no kernels here, at some cost of time: {reason}", stacklevel=2)
        return False


def _add_ones(device: torch.device) -> bool:
    from genpipe.models.cuda import kernels

    one = torch.ones(1, 1, 1, 1, device=device)
    return float(kernels.add(one.clone(), one, one.flatten())) == 3


def evaluation(unet: UNet, forms: CudaForms, device: torch.device) -> Evaluate:
    """Give what evaluates a prepared U-Net: graphs of it, or itself."""
    return Graphs(unet, device=device) if forms.graphs else evaluate
