import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genpipe.models.cuda.graphs import Capture, Outputs
from genpipe.training.ahead import ahead, workers_beside
from genpipe.training.loop import Budget, Randomness, StagedLoss, Stopped, choose_accelerator, fit
from genpipe.training.update import Update


class Again:
    """What a CUDA graph does, on a CPU: runs the function at once and, as often as it is repeated, again."""

    def __init__(self) -> None:
        self.recorded = self.repeated = 0

    def __call__(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        function()
        self.recorded += 1

        def repeat() -> Outputs:
            self.repeated += 1
            return function()

        return repeat

    def wait(self) -> None: ...

    def free_share(self) -> float:
        return 1.0

    def release(self) -> None: ...


class Refused(Again):
    """A recording that cannot be made."""

    def __call__(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def network() -> nn.Module:
    """A small network of every kind of weight."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 32), nn.SiLU(), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 24)
    )


def error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def updated(
    capture: Capture | None, rows: list[int], device: str = "cpu"
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """The losses of some updates of so many rows each, and the weights and their average after them."""
    model, noise = network().to(device), torch.Generator().manual_seed(1)
    update = Update(model, choose_accelerator(device, "fp32"), capture=capture)
    losses = []
    for step, count in enumerate(rows):
        x = torch.randn(count, 24, generator=noise).to(device)
        losses.append(float(update(error, (x, x.flip(1)), rate=1e-2 / (1 + step), share=1 / (2 + step))))
    return losses, model.state_dict(), update.averaged.state_dict()


def test_a_recorded_update_changes_the_weights_as_a_plain_one_does() -> None:
    rows = [8, 8, 8, 5, 8, 8]  # the fourth step is not of the recorded shape
    again = Again()
    plain, recorded = updated(None, rows), updated(again, rows)
    assert (again.recorded, again.repeated) == (1, 4)
    assert recorded[0] == pytest.approx(plain[0], rel=1e-5) and plain[0][-1] < plain[0][0]
    for expected, found in zip(plain[1:], recorded[1:], strict=True):
        assert all(torch.allclose(found[name], each, atol=1e-6) for name, each in expected.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_of_an_update_changes_the_weights_as_a_plain_one_does(recwarn: pytest.WarningsRecorder) -> None:
    rows = [8, 8, 8, 5, 8, 8]
    plain, recorded = updated(None, rows), updated(None, rows, "cuda")
    assert not [warning for warning in recwarn if "graphs" in str(warning.message)]
    assert recorded[0] == pytest.approx(plain[0], rel=1e-3)
    for expected, found in zip(plain[1:], recorded[1:], strict=True):
        assert all(torch.allclose(found[name].cpu(), each, atol=1e-3) for name, each in expected.items())


def test_where_no_recording_can_be_made_updates_go_on_with_one_warning() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = updated(Refused(), [8, 8, 8])
    expected = updated(None, [8, 8, 8])
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert all(torch.allclose(found[1][name], each, atol=1e-6) for name, each in expected[1].items())
    (line,) = [str(each.message) for each in said if "graphs" in str(each.message)]
    assert line.startswith("training without CUDA graphs, at some cost of time: operation not permitted")


def test_a_loss_that_fails_is_not_taken_for_a_recording_that_does() -> None:
    def broken(model: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    update = Update(network(), choose_accelerator("cpu", "fp32"), capture=Again())
    with pytest.raises(RuntimeError, match="out of memory"):
        update(broken, (torch.ones(1, 24),), rate=1e-3, share=0.1)


def staged() -> StagedLoss[np.ndarray]:
    """The regression of `noisy` numbers that are prepared ahead."""

    def prepare(step: int, randomness: Randomness) -> np.ndarray:
        return np.array([[randomness.choices.random() + step for _ in range(24)] for _ in range(8)], np.float32)

    def admit(prepared: np.ndarray, step: int, randomness: Randomness) -> tuple[Tensor, ...]:
        return torch.from_numpy(prepared), torch.randn(8, 24, generator=randomness.noise)

    return StagedLoss(prepare, admit, error)


def trained(directory: Path, loss: Callable[..., Tensor], *, steps: int = 30, workers: int = 0) -> dict[str, Tensor]:
    fit(network(), loss, directory=directory, budget=Budget(steps=steps), peak_rate=1e-2, workers=workers,
        accelerator=choose_accelerator("cpu", "fp32"), checkpoint_minutes=0)  # fmt: skip
    return load_file(directory / "state.safetensors")


def test_a_loss_prepared_by_processes_trains_to_bitwise_the_same_weights(tmp_path: Path) -> None:
    loss = staged()
    whole = trained(tmp_path / "whole", lambda model, step, randomness: loss(model, step, randomness))
    helped = trained(tmp_path / "helped", loss, workers=2)
    assert whole.keys() == helped.keys() and all(torch.equal(whole[name], helped[name]) for name in whole)


def test_a_run_that_is_asked_to_stop_saves_its_state_and_continues(tmp_path: Path) -> None:
    loss, asked = staged(), []

    def stop() -> bool:
        asked.append(0)
        return len(asked) == 7

    with pytest.raises(Stopped, match="stopped at step 7: the same command continues it"):
        fit(network(), loss, directory=tmp_path / "stopped", budget=Budget(steps=30), peak_rate=1e-2, stop=stop,
            accelerator=choose_accelerator("cpu", "fp32"))  # fmt: skip
    whole, continued = trained(tmp_path / "whole", loss), trained(tmp_path / "stopped", loss)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_made_ahead_comes_in_order(workers: int) -> None:
    assert list(ahead(lambda number: deepcopy([number]), range(5, 25), workers=workers)) == [[n] for n in range(5, 25)]


def test_only_a_gpu_has_processes_beside_it() -> None:
    assert workers_beside(torch.device("cpu"), allowed=16) == 0
    assert workers_beside(torch.device("cuda"), allowed=16) == 14
    assert workers_beside(torch.device("cuda"), allowed=1) == 0
