import torch
from torch import nn

from genpipe.training.muon import Muon, matrices, orthogonalise


def test_singular_values_become_about_one_and_directions_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 60), (60, 24)):
        matrix = torch.randn(shape, generator=generator)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ orthogonalise(matrix, dtype=torch.bfloat16) @ v.T  # diagonal, if the singular vectors stayed
        # The iteration leaves values in 0.7 … 1.2, by design.
        assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3
        assert (inner - inner.diagonal().diag()).abs().max() < 0.05  # bf16


def test_steps_equal_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(48, 20, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon([ours], lr=1e-2, weight_decay=0.1, dtype=torch.bfloat16)
    # torch's multiplies in bf16 always.
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(48, 20, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        reference.step()
    moved = (start - theirs).abs().max()
    assert moved > 1e-3
    assert (ours - theirs).abs().max() < 0.02 * moved  # both iterate in bf16, in another order


def test_a_convolution_is_a_matrix_of_one_row_per_output_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = nn.Parameter(torch.randn(16, 18 * 9, generator=generator))
    convolution = nn.Parameter(flat.detach().clone().view(16, 18, 3, 3))
    gradient = torch.randn(16, 18 * 9, generator=generator)
    flat.grad, convolution.grad = gradient, gradient.view(16, 18, 3, 3)
    for parameter in (flat, convolution):
        Muon([parameter], lr=1e-2).step()
    assert torch.equal(flat, convolution.flatten(1))


def test_embeddings_and_what_is_narrow_or_frozen_is_left_out() -> None:
    model = nn.Sequential(
        nn.Embedding(40, 20), nn.Conv2d(20, 32, 3), nn.LayerNorm(32), nn.Linear(32, 4), nn.Linear(32, 32)
    )
    for parameter in model[4].parameters():
        parameter.requires_grad_(False)
    assert matrices(model) == [model[1].weight]


def test_matrices_of_one_shape_are_made_orthogonal_together_as_each_alone() -> None:
    batch = torch.randn(3, 20, 48, generator=torch.Generator().manual_seed(0))
    together = orthogonalise(batch)
    for one, expected in zip(together, batch, strict=True):
        assert torch.allclose(one, orthogonalise(expected), atol=1e-5)  # another order of sums


def test_a_weight_without_a_gradient_stays() -> None:
    first, second = (nn.Parameter(torch.ones(16, 16)) for _ in range(2))
    first.grad = torch.eye(16)
    muon = Muon([first, second], lr=1e-2)
    muon.step()
    assert torch.equal(second, torch.ones(16, 16)) and not torch.equal(first, second) and second not in muon.state
