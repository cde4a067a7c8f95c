import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genpipe.hardware import training_dtype
from genpipe.training.loop import Budget, Randomness, choose_accelerator, fit, learning_rate


def noisy_regression(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
    x = torch.randn(8, 3, generator=randomness.noise)
    return (model(x) - randomness.choices.random() * x.sum(dim=1, keepdim=True)).square().mean()


def train(directory: Path, steps: int, *, until: int | None = None) -> nn.Module:
    """Train for a budget of `steps`; `until` kills the run at that step."""

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        if step == until:
            raise KeyboardInterrupt
        return noisy_regression(model, step, randomness)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    accelerator = choose_accelerator("cpu", "fp32")
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

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        if step == until:
            raise KeyboardInterrupt
        return noisy_regression(model, step, randomness)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8).requires_grad_(False), nn.BatchNorm1d(8), nn.Linear(8, 1))
    accelerator = choose_accelerator("cpu", "fp32")
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
    fit(model, lambda model, step, randomness: model(x).square().mean(), directory=tmp_path, budget=Budget(steps=1),
        peak_rate=1e-2, accelerator=choose_accelerator("cpu", "fp32"), muon=muon)  # fmt: skip
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
    with pytest.raises(FloatingPointError, match="loss is not finite at step 0: lower the learning rate"):
        fit(nn.Linear(1, 1), lambda model, step, randomness: model(torch.full((1, 1), math.nan)).sum(), directory=tmp_path,
            budget=Budget(steps=3), peak_rate=1e-3, accelerator=choose_accelerator("cpu", "fp32"))  # fmt: skip


def test_the_step_of_a_bad_loss_is_named_though_it_is_looked_for_later(tmp_path: Path) -> None:
    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        return model(torch.full((1, 1), math.nan if step == 3 else 1.0)).sum()

    with pytest.raises(FloatingPointError, match="loss is not finite at step 3"):
        fit(nn.Linear(1, 1), loss, directory=tmp_path, budget=Budget(steps=20), peak_rate=1e-3,
            accelerator=choose_accelerator("cpu", "fp32"))  # fmt: skip
    assert not (tmp_path / "state.safetensors").exists()


class Watched(nn.Module):
    """A small network of every kind of weight, whose losses are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(20, 24), nn.BatchNorm2d(24)
        self.first, self.second = nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.third, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 24)
        self.losses: list[float] = []

    def loss(self, randomness: Randomness) -> Tensor:
        ids = torch.randint(0, 20, (4, 5, 5), generator=randomness.noise)
        x = self.norm(self.words(ids).permute(0, 3, 1, 2))
        x = self.third(self.second(self.first(x).relu()).relu()).relu().mean(dim=(2, 3))
        value = (self.head(x) - randomness.choices.random()).square().mean()
        self.losses.append(value.item())
        return value


def one_by_one(model: Watched, *, steps: int, rate: float) -> nn.Module:
    """The loop as it was before weights were changed together: a reference, one tensor after the other."""
    averaged = deepcopy(model)
    matrices = {id(p) for p in model.parameters() if p.ndim >= 2 and p is not model.words.weight}
    rest = [p for p in model.parameters() if id(p) not in matrices]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.01, foreach=False, fused=False)
    momenta = {id(p): torch.zeros_like(p) for p in model.parameters()}
    for step in range(steps):
        now = learning_rate(step / steps, rate)
        model.loss(Randomness.at(5, step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        adamw.param_groups[0]["lr"] = now
        adamw.step()
        with torch.no_grad():
            for weight in (p for p in model.parameters() if id(p) in matrices):
                assert weight.grad is not None
                momentum = momenta[id(weight)].lerp_(weight.grad, 1 - 0.95)
                x = weight.grad.lerp(momentum, 0.95).flatten(1)
                tall = x.shape[0] > x.shape[1]
                x = (x.mT if tall else x) / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                update = x.mT if tall else x
                weight.mul_(1 - now * 0.01)
                weight.add_(update.reshape(weight.shape), alpha=-now * 0.2 * max(update.shape) ** 0.5)
            follow = 1 - min(0.999, (1 + step) / (10 + step))
            for mean, weight in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, follow)
            for mean, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
                mean.copy_(buffer)
        model.zero_grad()
    return averaged


def test_the_loss_curve_is_that_of_a_loop_over_single_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Watched()
    reference, before = deepcopy(model), deepcopy(model)

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        assert isinstance(model, Watched)
        return model.loss(randomness)

    averaged = fit(model, loss, directory=tmp_path,
                   budget=Budget(steps=60), peak_rate=1e-2, accelerator=choose_accelerator("cpu", "fp32"), seed=5)  # fmt: skip
    expected = one_by_one(reference, steps=60, rate=1e-2)
    assert model.losses == pytest.approx(reference.losses, rel=1e-3, abs=1e-5) and len(model.losses) == 60
    assert model.losses[0] == reference.losses[0] and model.losses[-1] < model.losses[0] / 5
    for (name, ours), theirs in zip(averaged.state_dict().items(), expected.state_dict().values(), strict=True):
        moved = (theirs - before.state_dict()[name]).abs().max()
        assert (ours - theirs).abs().max() <= 2e-3 * moved, name


FOREIGN: list[tuple[dict[str, Tensor], dict[str, str] | None, str]] = [
    ({"x": torch.ones(1)}, None, "is not the state of a training"),
    ({"x": torch.ones(1)}, {"step": "3", "seconds": "1"}, "is the state of another network"),
    ({}, {"step": "many", "seconds": "1"}, "is not the state of a training"),
    ({}, {"step": "-1", "seconds": "1"}, "is not the state of a training"),
    ({}, {"step": "9" * 400, "seconds": "1"}, "is not the state of a training"),
    ({}, {"step": "1", "seconds": "nan"}, "is not the state of a training"),
    ({}, {"step": "1"}, "is not the state of a training"),
    ({"momentum.0.weight": torch.ones(8, 3)}, {}, "is the state of another optimizer"),
    ({"exp_avg.0.weight": torch.ones(1, 1)}, {}, "is the state of another optimizer"),
]


@pytest.mark.parametrize(("tensors", "metadata", "says"), FOREIGN)
def test_a_state_of_something_else_is_a_line(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None, says: str
) -> None:
    train(tmp_path, 2)
    state = tmp_path / "state.safetensors"
    own = load_file(state) | tensors if "x" not in tensors else tensors
    save_file(own, state, metadata=metadata if metadata is None else {"step": "2", "seconds": "1"} | metadata)
    if metadata == {"step": "1"}:
        save_file(own, state, metadata=metadata)
    with pytest.raises(ValueError, match=f"state.safetensors {says}"):
        train(tmp_path, 4)


def test_the_accelerator_is_of_the_device_that_is_asked_for() -> None:
    accelerator = choose_accelerator("cpu")
    assert accelerator.device.type == "cpu"
    assert (accelerator.mixed_precision == "bf16") is (training_dtype(torch.device("cpu")) == torch.bfloat16)
    with pytest.raises(ValueError, match="device"):
        choose_accelerator("no such device")


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
