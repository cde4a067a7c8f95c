import platform
import subprocess
import sys
import warnings

import pytest
import torch

from genpipe import hardware
from genpipe.hardware import (
    choose_device,
    choose_dtype,
    cuda_cards,
    device_name,
    instruction_set,
    multiplies_int8,
    obey_quota,
    one_thread,
)

CPU = torch.device("cpu")


def test_bf16_is_chosen_on_a_cpu_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, dtype in (("amx", torch.bfloat16), ("avx512_bf16", torch.bfloat16), ("other", torch.float32)):
        monkeypatch.setattr(hardware, "instruction_set", lambda name=name: name)
        assert choose_dtype(None, CPU) == dtype


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_onednns_limit_is_heeded(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for set_outside in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(set_outside, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_avx512_supported", "_is_avx2_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: True, raising=False)
    assert instruction_set() == "amx"
    for limit, name in (
        *(("default", "amx"), ("AVX512_CORE_AMX", "amx"), ("AVX512_CORE_FP16", "avx512_bf16")),
        *(("AVX512_CORE_BF16", "avx512_bf16"), ("AVX512_CORE", "avx512"), ("AVX512_CORE_VNNI", "avx512")),
        *(
            ("AVX2", "avx2"),
            ("avx2_vnni", "avx2"),
            ("AVX", "other"),
            ("SSE41", "other"),
            ("AVX10_1_512", "avx512_bf16"),
        ),
    ):
        monkeypatch.setenv(variable, limit)
        assert instruction_set() == name
    monkeypatch.delenv(variable)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert instruction_set() == "avx512_bf16"
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert instruction_set() == "avx512"
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    assert instruction_set() == "avx2"
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    assert instruction_set() == "other"


@pytest.mark.parametrize("limit", ["AVX3", "nonsense", "x" * 5000, "\x1b[2J"])
def test_a_limit_that_onednn_does_not_know_limits_nothing_and_is_named(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    unlimited = instruction_set()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    with pytest.warns(UserWarning, match=r"ONEDNN_MAX_CPU_ISA=.*limits nothing: use one of DEFAULT, ") as caught:
        assert instruction_set() == unlimited
    assert str(caught[0].message).isprintable() and len(str(caught[0].message)) < 500


def test_bf16_that_onednn_refuses_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_avx512_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: True, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert instruction_set() == "avx512"


def test_what_is_asked_for_is_taken() -> None:
    assert choose_device("cpu") == CPU
    assert choose_dtype("fp32", CPU) == choose_dtype(torch.float32, CPU) == torch.float32
    assert choose_dtype("bf16", CPU) == torch.bfloat16


@pytest.mark.parametrize(
    "name",
    ["cpu:99999999999999999999", "cuda:99999999999999999999", "cpu:-1", "cpu:", "CPU", "", "meta", "x" * 5000, "\x1b[2J",
     "cuda:9", 5, -1, 10**30, b"cpu", [1], 1.5, True, torch.device("meta"), torch.float32],
)  # fmt: skip
def test_what_is_no_device_is_refused_in_one_short_line(name) -> None:
    with pytest.raises(ValueError, match=r"device .* (is unknown: use cuda|is not available: .*; use cpu)") as caught:
        choose_device(name)
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_a_card_that_is_not_there_or_has_too_old_a_driver_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> tuple[int, str]:
        return 0, "The NVIDIA driver on your system is too old (found version 11040)"

    with pytest.raises(
        ValueError, match=r"^device 'cuda' is not available: The NVIDIA driver .* \(found .*\); use cpu$"
    ):
        choose_device("cuda", cards=none)
    with pytest.raises(
        ValueError, match=r"^device 'cuda:2' is not available: torch sees 2 CUDA devices, counted from 0;"
    ):
        choose_device("cuda:2", cards=lambda: (2, ""))
    assert choose_device("cuda:1", cards=lambda: (2, "")) == torch.device("cuda:1")

    def too_old() -> bool:  # as torch says it, while NVML goes on counting cards
        text = "CUDA initialization: The driver is too old (found version 11040). Please update\nit. (Triggered internally)"
        warnings.warn(text, stacklevel=2)
        return False

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count, why = cuda_cards()
    assert count == 0 and why.startswith("CUDA initialization: The driver is too old (found version 11040); install")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert cuda_cards() == (0, "this torch is built without CUDA")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("DEFAULT", True), ("AVX2_VNNI", True), ("AVX512_CORE_VNNI", True), ("AVX2", False), ("AVX512_CORE", False)],
)
def test_int8_is_native_where_onednns_limit_leaves_it(
    limit: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert multiplies_int8() == expected


@pytest.mark.parametrize("name", ["int8", "", "x" * 5000, 5, [], {}, torch.int8, torch.device("cpu"), "fp16"])
def test_what_is_no_dtype_is_refused_in_one_short_line(name) -> None:
    with pytest.raises(ValueError, match=r"dtype .* is not supported.*: use ") as caught:
        choose_dtype(name, CPU)
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_a_cpu_has_no_number() -> None:
    assert choose_device("cpu:3") == choose_device(torch.device("cpu", 3)) == CPU


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


@pytest.mark.parametrize(("named", "allowed", "expected"), [(None, 2, 2), (None, 64, 4), ("4", 2, 4)])
def test_threads_are_no_more_than_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, named: str | None, allowed: int, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if named is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", named)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        obey_quota(allowed)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


def test_a_processor_is_named_with_what_makes_it_fast() -> None:
    name = device_name(torch.device("cpu"))
    assert name.endswith(f", {instruction_set()}, {torch.get_num_threads()} threads") and "\n" not in name


MEMORY = """
import sys
import torch
from genpipe.hardware import keep_freed_memory

def held() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))

keep_freed_memory(large=sys.argv[1] == "large")
before = held()
for numbers in (2**25, 2**21):  # 128 MB, 8 MB
    tensors = [torch.ones(numbers) for _ in range(2**26 // numbers)]
    del tensors
    print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="glibc alone has the option")
@pytest.mark.parametrize("which", ["large", "small"])
def test_freed_memory_is_kept_of_large_tensors_only_where_asked(which: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, which], capture_output=True, text=True, check=True)
    after_large, after_small = (int(line) for line in done.stdout.split())
    assert after_small > 2**27  # of 256 MB
    assert after_large > 2**27 if which == "large" else after_large < 2**26
