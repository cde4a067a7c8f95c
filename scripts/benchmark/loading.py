"""Time loading Stable Diffusion XL from a single file, and taking a LoRA on a warm pipeline; random weights at full size.

    python -m scripts.benchmark.loading                     # writes 6.9 GB of fp16 to a temporary folder; takes 12 GB of memory
    python -m scripts.benchmark.loading --folder /fast      # keeps the files there for the next run
    python -m scripts.benchmark.loading --weights fp8       # the denoiser's weights in fp8
    python -m scripts.benchmark.loading --toy               # tiny networks, in this process: tries the script, measures nothing

The yardstick is reading the file once from its beginning to its end. Everything is done twice: with the file in the system's
page cache, and after it was dropped from there, where the system allows that. Each measurement has a process of its own,
which first loads a tiny model, so that no import and no first call is counted. Memory is the most that the process held over
what it held before, mapped pages included. "As stored" reads every weight as the file has it; "ready" is a whole pipeline in
the form that draws. A LoRA of rank 16 changes every linear layer of the U-Net and of both text encoders. The last line is one
JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from genpipe import Pipeline
from genpipe.checkpoints import Checkpoint, layout, load_checkpoint
from genpipe.checkpoints.clip_tokenizer import clip_tokenizer
from genpipe.checkpoints.families import SDXL
from genpipe.checkpoints.single_file_saving import save_single_file
from genpipe.checkpoints.weights import skeleton
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig
from scripts.benchmark.step import isolated, state
from scripts.make.checkpoint import FAMILIES, VAE_SHAPE, Family

RANK = 16
LIMITS = {"time": 1.5, "memory": 1.15, "lora_s": 10.0}


def tiny(family: Family) -> Family:
    """The family with narrow networks, whose shapes still tell it: one attention head per 64 channels."""
    widths = {"text_encoder": 64, "text_encoder_2": 128}
    texts = {
        name: {**shape, "hidden_size": widths[name], "intermediate_size": 96, "num_hidden_layers": 2,
               "num_attention_heads": widths[name] // 64, "projection_dim": 128}
        for name, shape in family.texts.items()
    }  # fmt: skip
    unet = {**family.unet, "block_out_channels": (64, 128, 128), "attention_head_dim": (1, 2, 2),
            "transformer_layers_per_block": (1, 1, 2), "cross_attention_dim": 192,
            "projection_class_embeddings_input_dim": 128 + 6 * 256}  # fmt: skip
    return replace(family, texts=texts, unet=unet, vae={**family.vae, "block_out_channels": (32, 32, 32, 64)})


def make(path: Path, lora: Path, family: Family) -> None:
    """Write a model and a LoRA for it, both in fp16."""
    generator = torch.Generator().manual_seed(0)

    def random(build: Callable[[], nn.Module]) -> Any:
        network = skeleton(build).to(torch.float16).to_empty(device="cpu")
        for parameter in network.parameters():
            parameter.data.uniform_(-0.05, 0.05, generator=generator)
        return network

    texts = [
        TextEncoderConfig.from_dict(
            {**shape, "architectures": [f"CLIPTextModel{'WithProjection' * (name == 'text_encoder_2')}"]}
        )
        for name, shape in family.texts.items()
    ]
    model = Checkpoint(
        text_encoders=tuple(random(lambda config=config: TextEncoder(config)) for config in texts),
        tokenizers=tuple(clip_tokenizer(form.pad) for form in SDXL.texts),
        unet=random(lambda: UNet(UNetConfig.from_dict(family.unet))),
        vae=random(lambda: VAE(VAEConfig.from_dict({**VAE_SHAPE, **family.vae, "sample_size": 1024}))),
        scheduler_config=dict(SDXL.scheduler_config),
        defaults={},
        source="random weights",
        family=SDXL,
    )
    tensors = {}
    for part, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2")):
        names = layout.UNET if part == "unet" else layout.text_encoder(part)
        for key, shape in model.shapes[part].items():
            if len(shape) == 2 and ("attention" in key or "feed_forward" in key):
                module = f"{prefix}_{names.theirs(key).removesuffix('.weight').replace('.', '_')}"
                for end, size in (("down", (RANK, shape[1])), ("up", (shape[0], RANK))):
                    tensors[f"{module}.lora_{end}.weight"] = torch.randn(size, generator=generator).mul_(0.01).half()
    save_file(tensors, lora)
    save_single_file(path, model)


def drop(path: Path) -> None:
    """Take a file out of the system's page cache, where the system allows it."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path, cold: bool) -> dict[str, float]:
    """Read a file once."""
    buffer = bytearray(2**24)
    for dropped in (False, cold):  # once before, so that it is in the cache unless it is dropped
        if dropped:
            drop(path)
        start = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return {"seconds": time.perf_counter() - start}


def load(path: Path, small: Path, cold: bool, options: dict[str, Any] | None) -> dict[str, float]:
    """Load a model: every weight as it is stored, or with options a pipeline that is ready to draw."""

    def once(file: Path) -> Any:
        if options is not None:
            return Pipeline.from_pretrained(file, device="cpu", **options)
        checkpoint = load_checkpoint(file)
        for network in checkpoint.networks.values():
            for tensor in network.state_dict().values():
                tensor.view(-1).view(torch.uint8)[::4096].sum()  # a number of every page
        return checkpoint

    once(small)
    if cold:
        drop(path)
    before = held("VmRSS", anew=True)
    start = time.perf_counter()
    model = once(path)
    seconds = time.perf_counter() - start
    unet = sum(tensor.nbytes for tensor in model.unet.state_dict().values())
    return {"seconds": seconds, "growth_bytes": held("VmHWM") - before, "unet_bytes": unet}


def held(key: str, *, anew: bool = False) -> int:
    """Bytes that this process holds ("VmRSS"), or the most that it has held ("VmHWM") since it was asked `anew`."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def switch(path: Path, lora: Path, options: dict[str, Any]) -> dict[str, float]:
    """Take a LoRA on a warm pipeline, and leave it again; a prompt is encoded each time."""
    pipe = Pipeline.from_pretrained(path, device="cpu", **options)
    times = []
    for loras in ([], [], [lora], []):
        requests = pipe.requests("a pirate ship", seed=1, loras=loras)
        start = time.perf_counter()
        pipe.encode(requests)
        times.append(time.perf_counter() - start)
    return {"encode_s": times[1], "take_s": times[2] - times[1], "leave_s": times[3] - times[1]}


def measure(folder: Path, options: dict[str, Any], *, toy: bool) -> dict[str, Any]:
    """All figures, printed as they come."""
    call = (lambda function, *arguments: function(*arguments)) if toy else isolated
    path, lora, small = (folder / f"{name}.safetensors" for name in ("sdxl", "lora", "tiny"))
    family = FAMILIES["sdxl"]
    if not small.is_file():
        call(make, small, folder / "tiny_lora.safetensors", tiny(family))
    if not path.is_file():
        call(make, path, lora, tiny(family) if toy else family)
    size = path.stat().st_size
    report: dict[str, Any] = {"file_bytes": size, "options": options}
    print(
        f"A file of {size / 1e9:.2f} GB\n\n| | page cache | seconds | of reading once | memory grows by | of the file |"
    )
    print("|---|---|---|---|---|---|")
    for cache in ("warm", "cold"):
        cold = cache == "cold"
        once = report[f"read_{cache}"] = call(read, path, cold)
        print(f"| reading once | {cache} | {once['seconds']:.2f} | 1 | | |", flush=True)
        for name, form in (("as stored", None), ("ready", options)):
            row = call(load, path, small, cold, form)
            row |= {"times": row["seconds"] / once["seconds"], "share": row["growth_bytes"] / size}
            report[f"{name.replace(' ', '_')}_{cache}"] = row
            print(
                f"| {name} | {cache} | {row['seconds']:.2f} | {row['times']:.2f} × | {row['growth_bytes'] / 1e9:.2f} GB "
                f"| {row['share']:.2f} × |",
                flush=True,
            )
    report["lora"] = call(switch, path, lora, options)
    print(f"\nThe U-Net, ready: {report['ready_warm']['unet_bytes'] / 1e9:.2f} GB")
    print("LoRA on a warm pipeline: taken in {take_s:.1f} s, left in {leave_s:.1f} s".format(**report["lora"]))
    report["ok"] = (
        all(report[f"as_stored_{cache}"]["times"] <= LIMITS["time"] for cache in ("warm", "cold"))
        and report["as_stored_warm"]["share"] <= LIMITS["memory"]
        and report["lora"]["take_s"] <= LIMITS["lora_s"]
    )
    return report


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are written and kept (default: a temporary one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="that it runs in (%(default)s)")
    parser.add_argument("--weights", choices=("fp8", "int8", "bf16"), help="that the denoiser's are kept in")
    parser.add_argument("--toy", action="store_true", help="tiny networks, in this process")
    arguments = parser.parse_args(given)
    options = {"dtype": arguments.dtype, "weights": arguments.weights}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(folder, options, toy=arguments.toy)
    print(json.dumps({**state(getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[arguments.dtype])), **report}))
    return 0 if report["ok"] or arguments.toy else 1


if __name__ == "__main__":
    sys.exit(main())
