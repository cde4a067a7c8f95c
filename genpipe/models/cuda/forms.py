"""Which form the networks take on a CUDA device, by what the device and the installation can do, never by a card's name."""

from dataclasses import dataclass, replace

import torch

from genpipe.models.cuda.graphs import Graphs
from genpipe.models.denoiser import Evaluate, evaluate
from genpipe.models.unet import UNet


@dataclass(frozen=True)
class CudaForms:
    """The form of the networks on a CUDA device; the default is plain torch.

    Attributes:
        channels_last: keep the channels of a pixel side by side, as tensor cores read them.
        graphs: replay the U-Net's evaluations as CUDA graphs (`genpipe.models.cuda.graphs`).
    """

    channels_last: bool = False
    graphs: bool = False


PLAIN = CudaForms()
CHANNELS_LAST = replace(PLAIN, channels_last=True)
NAMED = {"plain": PLAIN, "channels_last": CHANNELS_LAST, "graphs": replace(CHANNELS_LAST, graphs=True)}


def best_forms(dtype: torch.dtype) -> CudaForms:
    """Choose the form that is fastest on a CUDA device in a dtype."""
    return CudaForms(channels_last=dtype != torch.float32, graphs=torch.version.cuda is not None)


def evaluation(unet: UNet, forms: CudaForms, device: torch.device) -> Evaluate:
    """Give what evaluates a prepared U-Net: graphs of it, or itself."""
    return Graphs(unet, device=device) if forms.graphs else evaluate
