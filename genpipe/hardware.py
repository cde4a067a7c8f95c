"""Which device and which dtype the networks run on, and on how many threads."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the best there is: cuda, then mps, then cpu.

    Raises:
        ValueError: the name is no device, or that device is not here.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not a device: use cuda, cuda:0, mps or cpu") from None
    if device.type not in ("cuda", "mps", "cpu"):
        raise ValueError(f"device {str(name)!r} is not supported: use cuda, cuda:0, mps or cpu")
    cards = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise ValueError(f"device {str(name)!r} is not here: torch sees {cards} CUDA devices; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {str(name)!r} is not here: torch sees no Apple GPU; use --device cpu")
    return device


def choose_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The named dtype, or the best for the device.

    That is bf16 on a GPU that has it, else fp16; on a CPU bf16 only where the processor multiplies it natively
    (AVX512-BF16 or AMX), since elsewhere oneDNN emulates it at a loss.

    Raises:
        ValueError: the name is not one of fp32, bf16, fp16, or it is fp16 on a CPU.
    """
    if isinstance(name, str):
        if name not in DTYPES:
            raise ValueError(f"dtype {name!r} is not supported: use fp32, bf16 or fp16")
        name = DTYPES[name]
    if name is not None:
        if name not in DTYPES.values():
            raise ValueError(f"dtype {name} is not supported: use torch.float32, torch.bfloat16 or torch.float16")
        if name == torch.float16 and device.type == "cpu":
            raise ValueError("dtype fp16 is not supported on a CPU: use bf16 or fp32")
        return name
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if instruction_set() in ("amx", "avx512_bf16") else torch.float32


def instruction_set() -> str:
    """What the CPU offers to oneDNN: "amx" or "avx512_bf16", which multiply bf16 natively, or "other".

    `ONEDNN_MAX_CPU_ISA`, by which oneDNN can be told to use less than there is, is heeded.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "DEFAULT")).upper()
    # Private names: where a torch release lacks one, less is the safe answer.
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if supported is None or not supported():
        return "other"
    for name, check, limits in (
        ("amx", "_is_amx_tile_supported", ("AMX",)),
        ("avx512_bf16", "_is_avx512_bf16_supported", ("AMX", "BF16", "FP16", "AVX10")),
    ):
        allowed = limit in ("DEFAULT", "ALL") or any(part in limit for part in limits)
        if allowed and getattr(torch.cpu, check, lambda: False)():
            return name
    return "other"


def use_huge_pages() -> None:
    """Ask torch to back large CPU tensors with huge pages, where Linux has them: a third of the time for each new tensor.

    The memory of a decoder's tensors is new at every operation, and filling it page by page costs more than most
    operations. torch heeds this if it has not allocated anything yet, and other systems ignore it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Ask glibc to keep what this process frees for what it allocates next, where it would hand large tensors back.

    New pages cost more than most operations on them: a seventh of the time of decoding a picture of 512 × 512. Other C
    libraries have no such option, and are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(option, value)


def free_memory(device: torch.device) -> int | None:
    """Say how many bytes a device has free; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # counts caches that the system gives up
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """torch on one CPU thread for a while, so that sums are always added in the same order; the whole process is."""
    if not wanted:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
