"""Time a ResNet-50 prepared for inference against transformers' with the same weights, in turn in one run.

    python scripts/benchmark_classifiers.py
    python scripts/benchmark_classifiers.py --weights resnet50.safetensors

Batches of 32 scenes at 224×224. Without weights they are random, with batch norms that have seen scenes, so that logits
are of the size of a trained network's. The ceiling is the rate at which torch multiplies large matrices here. Agreement
is the share of the five likeliest labels of a picture that are among the other's five. The last line is one JSON object.
"""

import argparse
import importlib
import json
import os
import random
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from genpipe.scenes.compose import Composer
from genpipe.scenes.world import sample_batch
from genpipe.vision.inference import prepare_for_inference
from genpipe.vision.resnet import ResNet
from genpipe.vision.summary import summary
from genpipe.vision.weights import load_weights

transformers: Any = importlib.import_module("transformers")  # its type stubs lag behind it

SIZE, TOP = 224, 5
Model = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="FILE", help="of a ResNet-50 of 1,000 classes (default: random)")
    parser.add_argument("--batch", type=int, default=32, help="pictures at a time (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each network, in turn (%(default)s)")
    arguments = parser.parse_args()
    batch = arguments.batch
    pixels = scenes(batch)
    ours = network(arguments.weights)
    theirs = transformers_twin(ours)
    fp32, bf16 = prepare_for_inference(ours), prepare_for_inference(ours, dtype=torch.bfloat16)
    last = pixels.to(memory_format=torch.channels_last)
    half = last.bfloat16()
    models: dict[str, Model] = {
        "transformers fp32": lambda: theirs(pixels).logits,
        "genpipe fp32": lambda: fp32(last),
        "genpipe bf16": lambda: bf16(half),
    }
    work = 2 * summary(ours, (3, SIZE, SIZE)).multiply_adds * batch
    rates = {name: gemm_rate(dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    print(
        f"{work / 1e9:.0f} GFLOP a batch; ceiling " + ", ".join(f"{n} {r / 1e9:.0f} GFLOP/s" for n, r in rates.items())
    )
    times, logits = measure(models, arguments.runs)
    medians = {name: statistics.median(each) for name, each in times.items()}
    speedup = {name: medians["transformers fp32"] / median for name, median in medians.items()}
    agreement = {name: top_agreement(logits["transformers fp32"], each) for name, each in logits.items()}
    for name, median in medians.items():
        share = work / median / rates[name[-4:]]
        print(f"{name:<18} {median:6.2f} s {batch / median:7.1f} pictures/s  {speedup[name]:5.2f}x  "
              f"{share:4.0%} of the ceiling  top-{TOP} agreement {agreement[name]:.1%}")  # fmt: skip
    print(
        json.dumps(
            {
                "seconds": medians,
                "speedup": speedup,
                "agreement": agreement,
                "gemm_flops": rates,
                "batch": batch,
                "runs": arguments.runs,
                "weights": arguments.weights,
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "torch": version("torch"),
                "transformers": version("transformers"),
            }
        )
    )


def scenes(count: int) -> Tensor:
    """Unseen pictures: (count, 3, 224, 224) in [-1, 1]."""
    return Composer(size=SIZE).render(sample_batch(random.Random(0), count))


@torch.no_grad()
def network(weights: str | None) -> ResNet:
    torch.manual_seed(0)
    model = ResNet(50)
    if weights is not None:
        load_weights(model, weights)
        return model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average of what it sees
    model.train()(Composer(size=SIZE).render(sample_batch(random.Random(1), 16)))
    return model.eval()


def transformers_twin(model: ResNet) -> nn.Module:
    """transformers' ResNet-50 with the same weights."""
    config = transformers.ResNetConfig()
    config.num_labels = 1000
    twin = transformers.ResNetForImageClassification(config).eval()
    twin.load_state_dict({their_name(name): tensor for name, tensor in model.state_dict().items()}, strict=True)
    return twin


def their_name(ours: str) -> str:
    """What transformers calls a tensor of our state dict."""
    name = re.sub(r"^fc\.", "classifier.1.", ours)
    name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"resnet.encoder.stages.{int(match[1]) - 1}.layers.", name)
    name = name.replace("downsample.0.", "shortcut.convolution.").replace("downsample.1.", "shortcut.normalization.")
    name = re.sub(r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution.", name)
    return re.sub(r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization.", name)


@torch.inference_mode()
def measure(models: dict[str, Model], runs: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each run, and logits; in turn, so that a noisy machine slows all alike, after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in models}
    logits: dict[str, Tensor] = {}
    for run in range(runs + 1):
        for name, model in models.items():
            started = time.perf_counter()
            logits[name] = model().float()
            if run:
                times[name].append(time.perf_counter() - started)
    return times, logits


def gemm_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """The best of twenty products of square matrices, in floating-point operations a second."""
    first, second = torch.randn(2, size, size).to(dtype)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(first, second)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def top_agreement(first: Tensor, second: Tensor) -> float:
    """The mean share of the likeliest labels of one that are among those of the other."""
    ours, theirs = (logits.topk(TOP).indices for logits in (first, second))
    return (ours[:, :, None] == theirs[:, None]).any(dim=2).double().mean().item()


if __name__ == "__main__":
    main()
