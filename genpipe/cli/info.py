"""`genpipe info`: the device, the model cache and the versions in use; or what a file of weights is."""

import argparse
import os
import sys
from pathlib import Path

import genpipe

EXAMPLES = """\
examples:
  genpipe info
  genpipe info dreamshaper.safetensors
  genpipe info loras/style.safetensors
"""


def info_command(parser: argparse.ArgumentParser) -> None:
    """show the device, the model cache and the versions in use; or what a model, a LoRA or another file is"""
    parser.usage = "%(prog)s [FILE] [--allow-pickle]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_info)
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="a file of weights, or a checkpoint's folder"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read .ckpt files too: their tensors, no code")


def _info(args: argparse.Namespace) -> int:
    if args.file is None:
        return _machine()
    from genpipe.checkpoints.describe import describe_path

    for key, value in {"file": str(args.file), **describe_path(args.file, allow_pickle=args.allow_pickle)}.items():
        print(f"{key:<14}{value}")
    return 0


def _machine() -> int:
    from importlib.metadata import PackageNotFoundError, version

    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from genpipe.hardware import choose_device, choose_dtype

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    device = choose_device()
    card = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    files = [entry for entry in Path(HF_HUB_CACHE).rglob("*") if entry.is_file() and not entry.is_symlink()]
    rows = {
        "genpipe": genpipe.__version__,
        "device": f"{device}{card}",
        "dtype": str(choose_dtype(None, device)).removeprefix("torch."),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "model cache": f"{HF_HUB_CACHE} ({sum(file.stat().st_size for file in files) / 1e6:,.0f} MB)",
        "python": sys.version.split()[0],
        **{package: version_of(package) for package in ("torch", "diffusers", "transformers", "pillow")},
    }
    for key, value in rows.items():
        print(f"{key:<13}{value}")
    return 0
