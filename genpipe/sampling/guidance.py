"""What a network's raw output means, and classifier-free guidance over it."""

from collections.abc import Sequence

from torch import Tensor

from genpipe.messages import quoted
from genpipe.sampling.schedule import Step

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


def x0_from_output(output: Tensor, x: Tensor, step: Step, prediction_type: str) -> Tensor:
    """The clean latents that a network's output implies; all tensors (B, C, H, W).

    Args:
        prediction_type: "epsilon" (the noise), "v_prediction" (alpha * eps - sigma * x0, arXiv 2202.00512), "sample" (x0
            itself) or "flow" (eps - x0, with alpha = 1 - sigma).

    Raises:
        ValueError: another prediction type.
    """
    if prediction_type == "epsilon":
        return (x - step.sigma * output) / step.alpha
    if prediction_type == "v_prediction":
        return step.alpha * x - step.sigma * output
    if prediction_type == "sample":
        return output
    if prediction_type == "flow":
        return x - step.sigma * output
    raise _unknown(prediction_type)


def output_from_x0(x0: Tensor, x: Tensor, step: Step, prediction_type: str) -> Tensor:
    """The inverse of `x0_from_output`. `step.sigma` must not be 0."""
    if prediction_type == "epsilon":
        return (x - step.alpha * x0) / step.sigma
    if prediction_type == "v_prediction":
        return (step.alpha * x - x0) / step.sigma
    if prediction_type == "sample":
        return x0
    if prediction_type == "flow":
        return (x - x0) / step.sigma
    raise _unknown(prediction_type)


def guided(uncond: Tensor, cond: Tensor, scale: float | Tensor, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) over raw network outputs, (B, C, H, W) each.

    Args:
        scale: 1 gives `cond`, 0 gives `uncond`; a tensor (B, 1, 1, 1) has one for each image.
        rescale: 0 … 1; how far each image's standard deviation is brought back to that of `cond` (arXiv 2305.08891,
            section 3.4).
    """
    output = uncond + scale * (cond - uncond)
    if rescale == 0:
        return output
    dims = tuple(range(1, output.ndim))
    matched = output * (cond.std(dims, keepdim=True) / output.std(dims, keepdim=True))
    return rescale * matched + (1 - rescale) * output


def composed(uncond: Tensor, conds: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Join several prompts into one direction of guidance (arXiv 2206.01714, eq. 11): u + Σ wᵢ (cᵢ - u).

    uncond, conds: raw network outputs, (B, C, H, W) each.
    weights: (prompts, B).
    """
    output = uncond
    for cond, weight in zip(conds, weights[:, :, None, None, None], strict=True):
        output = output + weight * (cond - uncond)
    return output


def _unknown(prediction_type: str) -> ValueError:
    return ValueError(f"unknown prediction_type {quoted(prediction_type)}: choose one of {', '.join(PREDICTION_TYPES)}")
