import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from genpipe.training.loop import Budget, Draw, fit, learning_rate


def noisy_regression(model: nn.Module, step: int, draw: Draw) -> Tensor:
    x = torch.randn(8, 3, generator=draw.noise)
    return (model(x) - draw.scenes.random() * x.sum(dim=1, keepdim=True)).square().mean()


def train(directory: Path, steps: int, *, until: int | None = None) -> nn.Module:
    """Train for a budget of `steps`; `until` kills the run at that step."""

    def loss(model: nn.Module, step: int, draw: Draw) -> Tensor:
        if step == until:
            raise KeyboardInterrupt
        return noisy_regression(model, step, draw)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    accelerator = Accelerator(cpu=True)
    # A checkpoint at every step.
    return fit(model, loss, directory=directory, budget=Budget(steps=steps), peak_rate=1e-2, accelerator=accelerator,
               checkpoint_minutes=0)  # fmt: skip


def test_a_killed_run_continues_to_bitwise_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 100).state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", 100, until=37)
    continued = train(tmp_path / "killed", 100).state_dict()
    for name, weight in whole.items():
        assert torch.equal(weight, continued[name]), name
    states = [load_file(tmp_path / run / "state.safetensors") for run in ("whole", "killed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_log_continues_the_loss_curve(tmp_path: Path) -> None:
    train(tmp_path / "whole", 100)
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [50, 100]
    assert all(math.isfinite(record["loss"]) for record in records)


def test_the_average_lags_behind_the_weights_and_reaches_them_when_they_stop(tmp_path: Path) -> None:
    averaged = train(tmp_path, 100).state_dict()
    state = load_file(tmp_path / "state.safetensors")
    for name, weight in averaged.items():
        assert torch.equal(weight, state[f"average.{name}"])
        assert not torch.equal(weight, state[f"model.{name}"])


def train_with_norm(directory: Path, *, until: int | None = None) -> tuple[nn.Module, nn.Module]:
    """The weights and their average after 20 steps of a network with a batch norm and a layer that is frozen."""

    def loss(model: nn.Module, step: int, draw: Draw) -> Tensor:
        if step == until:
            raise KeyboardInterrupt
        return noisy_regression(model, step, draw)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8).requires_grad_(False), nn.BatchNorm1d(8), nn.Linear(8, 1))
    accelerator = Accelerator(cpu=True)
    averaged = fit(model, loss, directory=directory, budget=Budget(steps=20), peak_rate=1e-2, accelerator=accelerator,
                   checkpoint_minutes=0)  # fmt: skip
    return model, averaged


def test_a_batch_norms_statistics_go_with_the_average(tmp_path: Path) -> None:
    model, averaged = train_with_norm(tmp_path)
    for (name, ours), (_, theirs) in zip(model.named_buffers(), averaged.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert dict(averaged.named_buffers())["1.num_batches_tracked"] == 20


def test_a_run_with_frozen_layers_continues_too(tmp_path: Path) -> None:
    model, averaged = train_with_norm(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_with_norm(tmp_path / "killed", until=7)
    states = [part.state_dict() for part in train_with_norm(tmp_path / "killed")]
    for expected, state in zip((model.state_dict(), averaged.state_dict()), states, strict=True):
        assert all(torch.equal(expected[name], tensor) for name, tensor in state.items())
    torch.manual_seed(0)
    assert torch.equal(states[0]["0.weight"], nn.Linear(3, 8).weight)


@pytest.mark.parametrize("muon", [False, True])
def test_without_muon_a_step_is_adamws(tmp_path: Path, muon: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 18)
    expected, x = deepcopy(model), torch.randn(4, 20)
    fit(model, lambda model, step, draw: model(x).square().mean(), directory=tmp_path, budget=Budget(steps=1),
        peak_rate=1e-2, accelerator=Accelerator(cpu=True), muon=muon)  # fmt: skip
    expected(x).square().mean().backward()
    nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    rate = learning_rate(0.0, 1e-2)
    torch.optim.AdamW(expected.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01).step()
    assert torch.allclose(model.bias, expected.bias, atol=1e-9)
    assert torch.allclose(model.weight, expected.weight, atol=1e-9) is not muon


def test_a_damaged_state_is_a_line(tmp_path: Path) -> None:
    train(tmp_path, 2)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged \(.*\): delete it to begin again"):
        train(tmp_path, 4)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        fit(nn.Linear(1, 1), lambda model, step, draw: model(torch.full((1, 1), math.nan)).sum(), directory=tmp_path,
            budget=Budget(steps=3), peak_rate=1e-3, accelerator=Accelerator(cpu=True))  # fmt: skip


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    assert learning_rate(0.01, 1.0) == pytest.approx(0.5)
    assert learning_rate(0.3, 1.0) == 1.0
    assert learning_rate(0.75, 1.0) == pytest.approx(0.5)
    assert learning_rate(1.0, 1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("budget", [{}, {"minutes": 1.0, "steps": 1}, {"minutes": 0.0}, {"steps": -1}])
def test_a_budget_that_says_nothing_or_too_much_is_refused(budget: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="training budget"):
        Budget(**budget)  # type: ignore[arg-type]


def test_minutes_are_measured_in_seconds_of_training() -> None:
    assert Budget(minutes=2).fraction(step=10_000, seconds=30.0) == 0.25
    assert Budget(steps=8).fraction(step=2, seconds=1e9) == 0.25
