"""A CUDA device where there is one; else the CPU, on which Triton's interpreter runs the kernels."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
