"""The story of the field on one data set: five classifiers learn the same scenes, each in the same time.

    pip install "genpipe[compare]"
    python -m scripts.evaluate.classifiers --minutes 10 --out runs/compare

Hand-crafted features (histograms of oriented gradients, Dalal and Triggs, 2005) and a linear SVM; LeNet-5; AlexNet;
ResNet-18; and a ResNet-18 that is given a tenth of the images, but starts from weights that have learned before: those
of --from, or else those of the embedded judge, a ResNet-18 of half the width. The judge has learned the whole world from
its labels, these concepts among them: that row says what it is worth to start from one that knows the subject, not how
soon something new is learned. The SVM is fitted to the end and may take less or more than --minutes; what each took is in
the table, the judge's own training not counted. Errors are on unseen scenes of the same concepts. Networks see 64×64
pixels in colour, LeNet-5 32×32 in grey, HOG 64×64 in grey. Prints a table, writes comparison.png into --out; the last
line is one JSON object.
"""

import argparse
import importlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.embedded import JUDGES
from genpipe.judge.scene_judge import Judge
from genpipe.scenes.compose import LUMINANCE, Composer
from genpipe.scenes.concepts import names
from genpipe.scenes.world import Scene, sample
from genpipe.training.classifier import train_classifier
from genpipe.training.image_folder import augment
from genpipe.training.loop import Budget, Randomness, choose_accelerator
from genpipe.vision.architectures import build
from genpipe.vision.metrics import top_k_error
from genpipe.vision.transfer import replace_head
from genpipe.vision.weights import load_classifier

SIZE, BATCH = 64, 32
TENTH = 10
# Peak learning rates: AlexNet has no norms to bear more, and what was learned before is not to be lost.
RATE, ALEXNET_RATE, TRANSFER_RATE = 1e-3, 2e-4, 3e-4


@dataclass(frozen=True)
class LabelledScenes:
    """Scenes of single concepts: pixels (N, 3, 64, 64) uint8, labels (N,) int64."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    name: str
    images: int  # that it learned from
    top1_error: float
    top5_error: float
    parameters: int
    training_seconds: float
    images_per_second: float  # in use, from pixels to logits


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of training for each network (%(default)s)")
    parser.add_argument("--concepts", type=int, default=40, help="how many are told apart, 6 or more (%(default)s)")
    parser.add_argument(
        "--images", "--pictures", type=int, default=100, help="of each to learn from, 10 or more (%(default)s)"
    )
    parser.add_argument(
        "--from", dest="weights", metavar="FILE", help="a ResNet-18 to transfer from (default: the judge's)"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read a --from that is not safetensors (.pth)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the plot (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and of training (%(default)s)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(given)
    core = names(core=True)
    if not 6 <= arguments.concepts <= len(core):
        parser.error(f"--concepts {arguments.concepts} is out of range: use 6 to {len(core)}")
    if arguments.images < TENTH:
        parser.error(f"--images {arguments.images} is too few: use {TENTH} or more")
    try:
        results = compare(arguments, core)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
    print(table(results))
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot(results, arguments.out / "comparison.png")
    print(
        json.dumps(
            {
                "results": [asdict(result) for result in results],
                "minutes": arguments.minutes,
                "concepts": arguments.concepts,
                "seed": arguments.seed,
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
            }
        )
    )


def compare(arguments: argparse.Namespace, core: Sequence[str]) -> list[Result]:
    """Train and measure each; return the rows of the table."""
    count, each, seed = arguments.concepts, arguments.images, arguments.seed
    concepts = random.Random(seed).sample(core, count)
    training = draw(concepts, each, f"{seed}/training")
    unseen = draw(concepts, max(each // 2, 20), f"{seed}/unseen")

    def learn(name: str, network: nn.Module, data: LabelledScenes, test: LabelledScenes, rate: float) -> Result:
        seconds = train(network, data, minutes=arguments.minutes, rate=rate, seed=seed, device=arguments.device)
        return measure(name, network, test, len(data.labels), seconds)

    torch.manual_seed(seed)
    name, start = starting_point(arguments.weights, count, arguments.allow_pickle)
    results = [svm(training, unseen)]
    torch.manual_seed(seed)
    results.append(learn("LeNet-5", build("lenet5", count), grey(training), grey(unseen), RATE))
    torch.manual_seed(seed)
    results.append(learn("AlexNet", build("alexnet", count), training, unseen, ALEXNET_RATE))
    torch.manual_seed(seed)
    results.append(learn("ResNet-18", build("resnet18", count), training, unseen, RATE))
    tenth = LabelledScenes(*(part.unflatten(0, (count, each))[:, : each // TENTH].flatten(0, 1)
                   for part in (training.pixels, training.labels)))  # fmt: skip
    results.append(learn(name, start, tenth, unseen, TRANSFER_RATE))
    return results


def starting_point(weights: str | None, classes: int, allow_pickle: bool) -> tuple[str, nn.Module]:
    """Return the row's name and the network of what was learned before, with a fresh head."""
    if weights is not None:
        given = load_classifier(weights, "resnet18", allow_pickle=allow_pickle)
        return f"ResNet-18, from {Path(weights).stem}", replace_head(given.network, classes)
    trunk = Judge.load(JUDGES / "model.safetensors", device="cpu").model.trunk.get_submodule("resnet")
    network = build("resnet18w32", classes)
    network.load_state_dict(network.state_dict() | trunk.state_dict())
    return "ResNet-18, half as wide, from the judge", network


def draw(concepts: Sequence[str], each: int, seed: str) -> LabelledScenes:
    """Draw `each` scenes of every concept, in the order of the concepts, labelled by it."""
    composer, rng = Composer(size=SIZE), random.Random(seed)

    def scene(concept: str) -> Scene:
        while not (found := sample(rng, [concept])).objects:
            pass
        return found

    parts = [composer.render([scene(concept) for _ in range(each)]) for concept in concepts]
    levels = ((torch.cat(parts) + 1) * 127.5).round().byte()
    return LabelledScenes(levels, torch.arange(len(concepts)).repeat_interleave(each))


def grey(data: LabelledScenes) -> LabelledScenes:
    """Return images at 32×32 pixels in grey, as LeNet-5 looks at them."""
    weights = torch.tensor(LUMINANCE)[:, None, None]
    levels = F.avg_pool2d((data.pixels * weights).sum(dim=1, keepdim=True), 2)
    return LabelledScenes(levels.round().byte(), data.labels)


def normalise(levels: Tensor) -> Tensor:
    """Scale levels 0 … 255 to [-1, 1]."""
    return levels.float() / 127.5 - 1


def train(
    model: nn.Module, data: LabelledScenes, *, minutes: float, rate: float, seed: int, device: str | None = None
) -> float:
    """Train in place, leave the average of the weights in the model, and return the seconds that it took."""
    size = data.pixels.shape[-1]

    def batches(randomness: Randomness) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(data.labels), (BATCH,), generator=randomness.noise)
        return normalise(augment(data.pixels[chosen], size, randomness.noise)), data.labels[chosen]

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        averaged = train_classifier(
            model,
            batches,
            directory=Path(folder) / type(model).__name__,
            budget=Budget(minutes=minutes),
            accelerator=choose_accelerator(device),
            peak_rate=rate,
            seed=seed,
        )
    model.load_state_dict(averaged.state_dict())
    return time.perf_counter() - started


@torch.inference_mode()
def measure(name: str, model: nn.Module, unseen: LabelledScenes, images: int, seconds: float) -> Result:
    model.eval()
    device = next(model.parameters()).device

    def logits() -> Tensor:
        return torch.cat([model(normalise(part).to(device)).cpu() for part in unseen.pixels.split(BATCH)])

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _result(name, logits, unseen, images, parameters, seconds)


def svm(training: LabelledScenes, unseen: LabelledScenes) -> Result:
    """Fit a linear SVM for each class against the rest, on histograms of oriented gradients, and measure it."""
    machine: Any = importlib.import_module("sklearn.svm").LinearSVC(C=0.1, dual=True, random_state=0, max_iter=2000)
    started = time.perf_counter()
    machine.fit(hog_features(training.pixels), training.labels.numpy())
    seconds = time.perf_counter() - started
    parameters = machine.coef_.size + machine.intercept_.size
    return _result(
        "HOG + linear SVM",
        lambda: torch.from_numpy(machine.decision_function(hog_features(unseen.pixels))),
        unseen,
        len(training.labels),
        parameters,
        seconds,
    )


def hog_features(pixels: Tensor) -> np.ndarray:
    """Return nine orientations in cells of 8×8 pixels, normalised in blocks of 2×2 cells, of grey images: (N, 1764)."""
    from skimage.color import rgb2gray  # pyright: ignore[reportMissingImports]
    from skimage.feature import hog  # pyright: ignore[reportMissingImports]

    return np.stack(
        [
            hog(rgb2gray(image), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
            for image in pixels.permute(0, 2, 3, 1).numpy()
        ]
    )


def _result(
    name: str, logits: Callable[[], Tensor], unseen: LabelledScenes, images: int, parameters: int, seconds: float
) -> Result:
    started = time.perf_counter()
    found = logits()
    rate = len(unseen.labels) / (time.perf_counter() - started)
    top1, top5 = (top_k_error(found, unseen.labels, k) for k in (1, 5))
    return Result(name, images, top1, top5, parameters, seconds, rate)


def table(results: Sequence[Result]) -> str:
    lines = [
        f"{'':<42}{'images':>9}{'top-1 error':>13}{'top-5 error':>13}{'parameters':>13}{'trained':>10}{'images/s':>12}"
    ]
    lines += [
        f"{result.name:<42}{result.images:>9,}{result.top1_error:>13.1%}{result.top5_error:>13.1%}"
        f"{result.parameters:>13,}{result.training_seconds:>8.0f} s{result.images_per_second:>12,.0f}"
        for result in results
    ]
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path) -> None:
    """Plot the top-1 and top-5 error of each, as bars."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    places = np.arange(len(results))
    for offset, label, errors in (
        (-0.2, "top-1", [result.top1_error for result in results]),
        (0.2, "top-5", [result.top5_error for result in results]),
    ):
        bars = axes.bar(places + offset, [100 * error for error in errors], 0.4, label=label)
        axes.bar_label(bars, fmt="%.1f")
    labels = ["\n".join([*result.name.split(", "), f"{result.images:,} images"]) for result in results]
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_ylabel("error on unseen scenes, %")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
