"""Which device and which dtype the networks run on, and on how many threads."""

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from genpipe.messages import one_line, quoted
from genpipe.processors import memory_left, processors

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4

# From the widest on: torch's own test, what oneDNN calls a limit that allows it, and whether it multiplies bf16 natively.
INSTRUCTION_SETS = {
    "amx": ("_is_amx_tile_supported", ("AMX",), True),
    "avx512_bf16": ("_is_avx512_bf16_supported", ("AMX", "BF16", "FP16", "AVX10"), True),
    "avx512": ("_is_avx512_supported", ("AVX512", "AVX10"), False),
    "avx2": ("_is_avx2_supported", ("AVX2", "AVX512", "AVX10"), False),
}
# What oneDNN 3 knows as a limit.
_LIMITS = (
    *("DEFAULT", "ALL", "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"),
    *("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16", "AVX10_1_512"),
    *("AVX10_1_512_AMX", "AVX10_1_512_AMX_FP16", "AVX10_2_512", "AVX10_2_512_AMX_2"),
)

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def cuda_cards() -> tuple[int, str]:
    """Count the GPUs that torch can use through CUDA, and say why there is none."""
    if not torch.backends.cuda.is_built():
        return 0, "this torch is built without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():  # a driver that is too old counts its cards all the same
            return torch.cuda.device_count(), ""
    reason = one_line(str(said[0].message).partition(". ")[0], 120) if said else "torch sees no card"
    return 0, f"{reason}; install a driver for CUDA {torch.version.cuda}, or show a card by CUDA_VISIBLE_DEVICES"


def choose_device(
    name: str | torch.device | None = None, *, cards: Callable[[], tuple[int, str]] = cuda_cards
) -> torch.device:
    """Find the named device, or the best there is: cuda, then mps, then cpu.

    `cards` counts the GPUs, and says why there is none.

    Raises:
        ValueError: the name is no device, or that device is not available.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    shown = quoted(str(name) if isinstance(name, torch.device) else name)
    try:
        device = torch.device(name) if isinstance(name, str | torch.device) else None
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "mps", "cpu"):
        raise ValueError(f"device {shown} is unknown: use cuda, cuda:0, mps or cpu")
    if device.type == "cuda":
        count, why = cards()
        if (device.index or 0) >= count:
            why = why or f"torch sees {count} CUDA device{'s' * (count > 1)}, counted from 0"
            raise ValueError(f"device {shown} is not available: {why}; use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {shown} is not available: torch sees no Apple GPU; use cpu")
    return torch.device("cpu") if device.type == "cpu" else device  # tensors on "cpu:3" say that they are on "cpu"


def choose_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Find the named dtype, or the best for the device.

    The best is bf16 on a GPU that has it, else fp16; on a CPU it is bf16 only where the processor multiplies it natively
    (AVX512-BF16 or AMX), since elsewhere oneDNN emulates it at a loss, and else fp32.

    Raises:
        ValueError: the name is not one of fp32, bf16, fp16, or it is fp16 on a CPU.
    """
    if name is not None:
        dtype = DTYPES.get(name) if isinstance(name, str) else name
        if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
            shown = name if isinstance(name, torch.dtype) else quoted(name)
            raise ValueError(f"dtype {shown} is not supported: use fp32, bf16 or fp16")
        if dtype == torch.float16 and device.type == "cpu":
            raise ValueError("dtype fp16 is not supported on a CPU: use bf16 or fp32")
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if instruction_set() in ("amx", "avx512_bf16") else torch.float32


def training_dtype(device: torch.device) -> torch.dtype:
    """Return what a training on this device multiplies in: bf16 where that is native, else fp32.

    Weights stay in fp32 either way. fp16 would lose small gradients.
    """
    return torch.bfloat16 if choose_dtype(None, device) == torch.bfloat16 else torch.float32


def without_overflow(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Choose what to run in where fp16 overflows: bf16 on a GPU that has it, else fp32; another dtype stays as it is."""
    if dtype != torch.float16:
        return dtype
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


def instruction_set() -> str:
    """Name the widest instructions that the CPU offers to oneDNN: one of `INSTRUCTION_SETS`, or "other".

    The environment variable `ONEDNN_MAX_CPU_ISA`, which tells oneDNN to use less than there is, is obeyed. What oneDNN does
    not know it ignores, and so does this, with a warning.
    """
    limit = _limit()
    # Private names: where a torch release lacks one, less is the safe answer.
    bf16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    for name, (check, limits, multiplies_bf16) in INSTRUCTION_SETS.items():
        allowed = limit in ("DEFAULT", "ALL") or any(part in limit for part in limits)
        if allowed and getattr(torch.cpu, check, lambda: False)() and (not multiplies_bf16 or (bf16 and bf16())):
            return name
    return "other"


def multiplies_int8() -> bool:
    """Whether the CPU multiplies int8 natively (AVX512-VNNI or AVX-VNNI), and oneDNN's limit allows it that."""
    if _limit() in ("SSE41", "AVX", "AVX2", "AVX512_CORE"):
        return False
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)()) or _flagged("avx_vnni")


def _limit() -> str:
    """Read how far oneDNN may go."""
    name = next((name for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA") if name in os.environ), "")
    limit = (os.environ.get(name) or "DEFAULT").upper()
    if limit not in _LIMITS:
        known = f"use one of {', '.join(_LIMITS)}, or unset it"
        warnings.warn(f"{name}={quoted(limit)} is not known to oneDNN, and limits nothing: {known}", stacklevel=1)
        limit = "DEFAULT"
    return limit


def _flagged(name: str, file: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether Linux lists a feature of the CPU."""
    with suppress(OSError):
        return name in file.read_text(encoding="utf-8", errors="replace").split()
    return False


def use_huge_pages() -> None:
    """Ask torch to back large CPU tensors with huge pages, where Linux has them.

    A decoder allocates new memory at every operation, and filling it page by page costs more than most operations; with
    huge pages a new tensor takes a third of the time. torch obeys only before its first allocation.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory(*, large: bool = True) -> None:
    """Ask glibc to keep the memory of tensors that this process frees, for those it allocates next.

    By default glibc hands that of large ones back to the system. New pages take a seventh of the time of decoding an image
    of 512 × 512 in bf16. Other C libraries have no such option, and are left as they are.

    Args:
        large: whether tensors of 32 MiB or more are kept too. Between them gaps remain that no other fits into: in fp32 they
            are half a gigabyte of that decode's peak, and new pages take no time that shows beside the arithmetic.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in (
        (_M_MMAP_MAX, 0 if large else 2**16),
        (_M_MMAP_THRESHOLD, 2**25),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
    ):
        mallopt(option, value)


def release_freed_memory() -> None:
    """Hand what `keep_freed_memory` has kept back to the system, before sizes are allocated that would not fit into it."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def device_name(device: torch.device) -> str:
    """Name a device for people: the GPU, or the processor and how many of them this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError, ValueError), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {instruction_set()}, {torch.get_num_threads()} threads"


def obey_quota(allowed: int | None = None) -> None:
    """Run torch on no more threads than the process may use; by default torch counts those of the whole machine.

    Where OMP_NUM_THREADS says how many, nothing is changed.

    Args:
        allowed: threads; by default what the container allows.
    """
    allowed = processors() if allowed is None else allowed
    if "OMP_NUM_THREADS" not in os.environ and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)


def free_memory(device: torch.device) -> int | None:
    """Say how many bytes a device has free, on a CPU at most what the container leaves; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [left for left in (memory_left(), _available()) if left is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # counts caches that the system gives up
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def peak_memory() -> int:
    """Tell the most memory that this process has held, in bytes; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Run torch on one CPU thread for a while, in the whole process, so that sums are always added in the same order."""
    if not wanted:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
