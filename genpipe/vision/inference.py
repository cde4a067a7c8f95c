"""Preparing a trained network for inference, explicitly: it computes the same, faster, and can no longer be trained."""

from copy import deepcopy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def prepare_for_inference(model: AnyModule, *, dtype: torch.dtype | None = None) -> AnyModule:
    """Return a copy of `model` in evaluation mode with its batch norms folded, its weights in channels-last order.

    Args:
        dtype: of its weights, after folding; pixels have to be of it too. None keeps the model's.
    """
    folded = fold_batch_norms(model)
    return folded.to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def fold_batch_norms(model: AnyModule) -> AnyModule:
    """Return a copy of `model` in evaluation mode in which convolutions do the work of the batch norms behind them.

    In evaluation a batch norm is a factor and a summand for each channel, which the convolution's weights and bias can
    take. A norm is taken to be behind a convolution if it is registered right after it in the same module and has its
    channels, as in all networks of `genpipe.vision`. Where it stood, an identity remains.
    """
    model = deepcopy(model).eval()
    for module in list(model.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model.eval()
