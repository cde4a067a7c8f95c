"""Weights of words, as A1111 applies them."""

import numpy as np
import pytest
import torch

from genpipe.prompts.weighting import weighted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_are_weighted_and_the_mean_is_kept(dtype: torch.dtype) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    context = (torch.randn(16, 8, generator=generator) + 0.5).to(dtype)
    weights = [1.0, 1.5, 0.5, *[1.0] * 13]
    z = context.double().numpy()
    expected = z * np.array(weights)[:, None]
    expected *= z.mean() / expected.mean()
    found = weighted(context, weights)
    assert found.dtype == dtype
    assert np.allclose(found.double().numpy(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.02)


def test_without_weights_the_context_stays_as_it_is() -> None:
    context = torch.randn(4, 8, generator=torch.Generator("cpu").manual_seed(0))
    assert weighted(context, [1.0] * 4) is context


def test_vectors_that_cancel_out_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing of it"):
        weighted(torch.ones(2, 4), [1.0, -1.0])
