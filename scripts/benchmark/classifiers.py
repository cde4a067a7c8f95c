"""Time a ResNet-50 prepared for inference against transformers' with the same weights, in turn in one run.

    python -m scripts.benchmark.classifiers
    python -m scripts.benchmark.classifiers --weights resnet50.safetensors

Batches of 32 scenes at 224×224, preprocessed as for ImageNet. Without weights they are random, with batch norms that have seen scenes. The ceiling is
the rate at which torch multiplies large matrices here. Agreement is the share of the five likeliest labels of a picture
that are among the other's five; for bf16 it means something only with trained weights, since random ones enlarge any
rounding. The last line is one JSON object.
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
from genpipe.scenes.concepts import names
from genpipe.scenes.world import sample_batch
from genpipe.vision.inference import prepare_for_inference
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.resnet import ResNet
from genpipe.vision.summary import summary
from genpipe.vision.weights import load_classifier

transformers: Any = importlib.import_module("transformers")  # its type stubs lag behind it

TOP = 5
Model = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="FILE", help="of a ResNet-50 (default: random, for 1,000 classes)")
    parser.add_argument("--size", type=int, default=224, help="side of the images (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images at a time (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each network, in turn (%(default)s)")
    arguments = parser.parse_args()
    batch, size = arguments.batch, arguments.size
    pixels = scenes(random.Random(0), batch, size)
    ours = network(arguments.weights, size)
    theirs = transformers_twin(ours)
    fp32, bf16 = prepare_for_inference(ours), prepare_for_inference(ours, dtype=torch.bfloat16)
    last = pixels.to(memory_format=torch.channels_last)
    half = last.bfloat16()
    models: dict[str, Model] = {
        "transformers fp32": lambda: theirs(pixels).logits,
        "genpipe fp32": lambda: fp32(last),
        "genpipe bf16": lambda: bf16(half),
    }
    work = 2 * summary(ours, (3, size, size)).multiply_adds * batch
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
                "size": size,
                "runs": arguments.runs,
                "weights": arguments.weights,
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "torch": version("torch"),
                "transformers": version("transformers"),
            }
        )
    )


def scenes(rng: random.Random, count: int, size: int) -> Tensor:
    """Images of the core concepts as networks of ImageNet see them: (count, 3, size, size)."""
    pixels = Composer(size=size).render(sample_batch(rng, count, pool=names(core=True)))
    return Preprocess().normalise((pixels + 1) * 127.5)


@torch.no_grad()
def network(weights: str | None, size: int) -> ResNet:
    if weights is not None:
        model = load_classifier(weights, "resnet50").network
        assert isinstance(model, ResNet)
        return model
    torch.manual_seed(0)
    model = ResNet(50)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average of what it sees
    model.train()(scenes(random.Random(1), 16, size))
    return model.eval()


def transformers_twin(model: ResNet) -> nn.Module:
    """transformers' ResNet-50 with the same weights."""
    config = transformers.ResNetConfig()
    config.num_labels = model.fc.out_features
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
    """The best of twenty products of square matrices, in floating-point operations per second."""
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
