"""Blocks whose forward pass torch compiles: each kind once per shape, however often a network repeats it."""

from typing import Any

import torch
from torch import Tensor, nn

from genpipe.blocks import ResidualBlock
from genpipe.models.attention import KeysValues, TransformerBlock

# More shapes of blocks than a network has: where there are more than torch's own limit of 8, it compiles no others.
_SHAPES = 256


def compile_blocks(network: nn.Module) -> None:
    """Put compiled blocks in the place of a prepared network's residual and transformer blocks.

    Nothing is compiled before it is called. What is compiled is kept where the environment variable TORCHINDUCTOR_CACHE_DIR
    says.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * _SHAPES)
    _replace(network)


def _replace(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, ResidualBlock):
            network.register_module(name, CompiledResidualBlock(child))
        elif isinstance(child, TransformerBlock):
            network.register_module(name, CompiledTransformerBlock(child))
        else:
            _replace(child)


class CompiledResidualBlock(ResidualBlock):
    """A `ResidualBlock`, compiled."""

    def __init__(self, block: ResidualBlock) -> None:
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.register_module(name, child)
        self.embedding = block.embedding

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """As `ResidualBlock`."""
        return _residual(self, x, shift)


class CompiledTransformerBlock(TransformerBlock):
    """A `TransformerBlock`, compiled."""

    def __init__(self, block: TransformerBlock) -> None:
        nn.Module.__init__(self)
        self.only_cross = block.only_cross
        for name, child in block.named_children():
            self.register_module(name, child)

    def forward(self, x: Tensor, prompts: KeysValues) -> Tensor:
        """As `TransformerBlock`."""
        # The mapping stays outside: with it, torch would compile every block anew.
        return _transformer(self, x, prompts.get(self.attention1), prompts[self.attention2])


_residual = torch.compile(ResidualBlock.forward, dynamic=False)
_transformer = torch.compile(TransformerBlock.attend, dynamic=False)
