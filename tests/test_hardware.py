import pytest
import torch

from genpipe import hardware
from genpipe.hardware import choose_device, choose_dtype, float32_copy, one_thread

CPU = torch.device("cpu")


def test_bf16_is_chosen_on_a_cpu_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(hardware, "_cpu_has_bf16", lambda native=native: native)
        assert choose_dtype(None, CPU) == dtype


def test_what_is_asked_for_is_taken() -> None:
    assert choose_device("cpu") == CPU
    assert choose_dtype("fp32", CPU) == choose_dtype(torch.float32, CPU) == torch.float32
    assert choose_dtype("bf16", CPU) == torch.bfloat16


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_thread_count_comes_back_whatever_happens(error: type[Exception] | None) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread(True):
            assert torch.get_num_threads() == 1
            if error:
                raise error
    except RuntimeError:
        pass
    assert torch.get_num_threads() == 2
    with one_thread(False):
        torch.set_num_threads(1)
    assert torch.get_num_threads() == 1  # left alone: not the business of a call that asked for nothing
    torch.set_num_threads(before)


def test_a_copy_in_fp32_leaves_the_original_as_it_is() -> None:
    network = torch.nn.Linear(2, 2).bfloat16()
    copied = float32_copy(network)
    assert copied.weight.dtype == torch.float32
    assert network.weight.dtype == torch.bfloat16
    assert torch.equal(copied.weight.bfloat16(), network.weight)
