"""What a network is made of: a table with a row per layer, worked out without computing a single activation."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genpipe.blocks import conv_output_size

_WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Layer:
    """One layer as it ran: a layer that runs twice has two rows, the second without parameters."""

    name: str  # in the network's state dict
    kind: str  # Conv2d, Linear, …
    output: tuple[int, ...]  # without the batch
    parameters: int
    multiply_adds: int  # for one image, of convolutions and linear layers; biases and norms are not counted


@dataclass(frozen=True)
class Summary:
    """The layers of a network, in the order they run; `str(summary)` is the table."""

    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """The number of multiplications of all layers for one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    def __str__(self) -> str:
        rows = [("layer", "kind", "output", "parameters", "multiply-adds")]
        rows += [
            (layer.name, layer.kind, "×".join(map(str, layer.output)), f"{layer.parameters:,}", f"{layer.multiply_adds:,}")
            for layer in self.layers
        ]  # fmt: skip
        rows.append(("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]  # fmt: skip
        return "\n".join(line.rstrip() for line in lines)


def summary(model: nn.Module, input_size: tuple[int, ...]) -> Summary:
    """Run `model`, as if in evaluation, on one input of `input_size` (C, H, W): print the result to see the table.

    The run is on torch's meta device, which computes shapes and nothing else, and on a copy: the model is left as it is.

    Raises:
        ValueError: the input is smaller than the network can reduce; names the layer at which the size falls below one.
            Or its channels are not those of the network.
    """
    model = deepcopy(model).to("meta").eval()
    layers: list[Layer] = []
    counted: set[nn.Module] = set()
    source = "×".join(map(str, input_size))

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: _check_fits(name, module, inputs[0], source)

    def after(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            weights = 0 if module in counted else sum(parameter.numel() for parameter in module.parameters())
            counted.add(module)
            layers.append(
                Layer(name, type(module).__name__, tuple(output.shape[1:]), weights, _multiply_adds(module, output))
            )

        return record

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_pre_hook(before(name))
            module.register_forward_hook(after(name))
    with torch.no_grad():
        model(torch.empty(1, *input_size, device="meta"))
    return Summary(tuple(layers))


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return 0
    # An element of the output is the sum of as many products as a row of the weight has elements.
    return output[0].numel() * module.weight[0].numel()


def _check_fits(name: str, module: nn.Module, x: Tensor, source: str) -> None:
    if not isinstance(module, _WINDOWED):
        return
    if isinstance(module, nn.Conv2d) and module.in_channels != x.shape[1]:
        raise ValueError(
            f"an input of {source} has the wrong channels: {name} (Conv2d) takes {module.in_channels}, not {x.shape[1]}"
        )
    # Padding by name and rounding up have other formulas; networks that reduce an image rarely have them.
    if isinstance(module.padding, str) or getattr(module, "ceil_mode", False):
        return
    before = tuple(x.shape[-2:])
    dilation = 1 if isinstance(module, nn.AvgPool2d) else module.dilation
    settings = (_pair(setting) for setting in (module.kernel_size, module.stride, module.padding, dilation))
    after = tuple(conv_output_size(*axis) for axis in zip(before, *settings, strict=True))
    if min(after) < 1:
        raise ValueError(
            f"an input of {source} is too small: at {name} ({type(module).__name__}) {before[0]}×{before[1]} "
            "falls below one: give a larger one"
        )


def _pair(setting: int | tuple[int, ...]) -> tuple[int, ...]:
    return (setting, setting) if isinstance(setting, int) else setting
