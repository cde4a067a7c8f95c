"""What int8 (W8A8) would save in the products of a step: measured before any of it is built."""

from typing import Any

import torch
from torch import Tensor

from genpipe.models.unet_config import UNetConfig
from scripts.benchmark.ceiling import best_seconds, forms_of, step_operations

BUDGET = 0.15  # seconds of measuring for each shape
SCALE, ZERO = 0.03, 128  # oneDNN's convolutions take unsigned inputs alone


def quantise(x: Tensor) -> Tensor:
    """With a scale known beforehand, the cheapest there is: one that depends on x costs another pass."""
    return (x * (1 / SCALE)).add_(ZERO).round_().clamp_(0, 255).to(torch.uint8)


@torch.inference_mode()
def int8(
    size: int, batch: int, dtype: torch.dtype, config: UNetConfig | None = None
) -> dict[str, dict[str, float]] | None:
    """Seconds of a guided step's linear layers and convolutions in `dtype`, in int8, and to quantise what goes into them;
    None where this torch lacks oneDNN's operators."""
    quantised = torch.ops.onednn
    if not all(hasattr(quantised, name) for name in ("qlinear_pointwise", "qconv_pointwise")):
        return None
    spent: dict[str, dict[str, float]] = {}
    for operation, count in step_operations(size, batch, config).items():
        kind, *numbers = operation
        if kind not in ("linear", "convolution"):  # what is not quantised
            continue
        if kind == "linear":
            rows, width, out = numbers
            x, weight = torch.randn(rows, width).to(dtype), torch.randint(-127, 128, (out, width), dtype=torch.int8)
        else:
            count_in, width, out, kernel, stride, height, across = numbers
            x = torch.randn(count_in, width, height, across).to(dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.randint(-127, 128, (out, width, kernel, kernel), dtype=torch.int8)
        scales, zeros, given = torch.rand(out) * 1e-3, torch.zeros(out, dtype=torch.int64), quantise(x)
        tail: tuple[Any, ...] = (1.0, 0, dtype, "none", [], "")
        if kind == "linear":
            packed = quantised.qlinear_prepack(weight, list(x.shape))

            def product(
                given: Tensor = given, packed: Tensor = packed, more: Any = (scales, zeros, None, *tail)
            ) -> Any:
                return quantised.qlinear_pointwise(given, SCALE, ZERO, packed, *more)
        else:
            where = ([stride] * 2, [kernel // 2] * 2, [1, 1], 1)
            packed = quantised.qconv_prepack(weight, scales, SCALE, ZERO, *where, list(x.shape))

            def product(
                given: Tensor = given, packed: Tensor = packed, more: Any = (scales, zeros, None, *where, *tail)
            ) -> Any:
                return quantised.qconv_pointwise(given, SCALE, ZERO, packed, *more)

        row = spent.setdefault(kind, {"exact": 0.0, "int8": 0.0, "quantise": 0.0})
        exact = dict(forms_of(operation, dtype))
        row["exact"] += count * min(best_seconds(run, budget=BUDGET) for run in exact.values())
        row["int8"] += count * best_seconds(product, budget=BUDGET)
        row["quantise"] += count * best_seconds(lambda x=x: quantise(x), budget=BUDGET)
    return spent
