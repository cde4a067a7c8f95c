"""Which devices workers get: their names, and how a process of this machine is given one."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from genpipe.embedded import EMBEDDED
from genpipe.messages import quoted
from genpipe.processors import processors

MOST = 256
# A GPU, or a slice of one (MIG), by the name that `nvidia-smi -L` shows.
_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]+")


def parse_devices(text: str) -> list[str]:
    """The workers' devices; [] for "auto", ["cuda"] for every card.

    Raises:
        ValueError: the text names none.
    """
    if text == "auto":
        return []
    devices: list[str] = []
    for part in text.split(","):
        kind, colon, number = part.strip().partition(":")
        if _UUID.fullmatch(part.strip()):
            devices.append(part.strip())
        elif kind not in ("cpu", "cuda", "mps") or (colon and not number.isdecimal()):
            raise ValueError(
                f"devices {quoted(text)} are not devices: use auto, cpu, cpu:4, cuda, cuda:0,cuda:1, or names that "
                "nvidia-smi -L shows, such as MIG-…"
            )
        elif kind == "cpu":
            devices += ["cpu"] * (int(number) if colon else 1)
        else:
            devices.append(part.strip())
    if not 1 <= len(devices) <= MOST:
        raise ValueError(f"devices {quoted(text)} are {len(devices)} workers: give 1 to {MOST}")
    return devices


def visible_slices(environment: Mapping[str, str]) -> list[str]:
    """The slices of GPUs (MIG) that CUDA_VISIBLE_DEVICES lists; a process sees one of them alone, the first."""
    listed = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [part for part in listed if part.startswith("MIG-")]


def environment_for(device: str | None) -> tuple[dict[str, str], str | None]:
    """Give the environment variables with which a process sees a device, and what it calls the device there."""
    if device is not None and _UUID.fullmatch(device):
        return {"CUDA_VISIBLE_DEVICES": device}, "cuda"
    return {}, device


def cpu_workers(model: str | None) -> int:
    """Processes that a CPU takes: one per processor, as far as three copies of the weights fit each into free memory.

    A model on the hub gets one: its files are not known here, and they are large.
    """
    folder = EMBEDDED if model is None else Path(model)
    size = sum(path.stat().st_size for path in folder.glob("*/*.safetensors")) if folder.is_dir() else 0
    if not size:
        return 1
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 1
    return max(1, min(processors(), free // (3 * size + (1 << 29))))
