"""Measure classifiers on ImageNet-1k's validation images, beside the accuracies that were published for their weights.

    python -m scripts.evaluate.imagenet imagenet/val resnet18-f37072fd.pth resnet50-11ad3fa6.pth --allow-pickle

DIR holds a folder for each of the 1,000 classes, named by its WordNet id (n01440764, …), whose order is that of the
classes. Weights are files or URLs (https://download.pytorch.org/models/resnet18-f37072fd.pth). Prints a row per file; the
last line is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from genpipe.hardware import choose_device
from genpipe.progress import Progress
from genpipe.vision.inference import prepare_for_inference
from genpipe.vision.metrics import top_k_error
from genpipe.vision.reading import images_in, read_image
from genpipe.vision.weights import Classifier, load_classifier

BATCH = 32
# Top-1 and top-5 accuracy in per cent on ImageNet-1k's validation images, by the stems of torchvision's weight files:
# the `acc@1` and `acc@5` in the metadata of `AlexNet_Weights` and `ResNet18_Weights` … `ResNet152_Weights`
# (torchvision/models/alexnet.py and resnet.py, compared with version 0.29.1).
PUBLISHED = {
    "alexnet-owt-7be5be79": (56.522, 79.066),
    "resnet18-f37072fd": (69.758, 89.078),
    "resnet34-b627a593": (73.314, 91.420),
    "resnet50-0676ba61": (76.130, 92.862),
    "resnet50-11ad3fa6": (80.858, 95.434),
    "resnet101-63fe2227": (77.374, 93.546),
    "resnet101-cd907fc2": (81.886, 95.780),
    "resnet152-394f9c45": (78.312, 94.046),
    "resnet152-f82ba261": (82.284, 96.002),
}


@dataclass(frozen=True)
class Row:
    weights: str
    images: int
    top1: float  # accuracies, in per cent
    top5: float
    published_top1: float | None
    published_top5: float | None
    images_per_second: float  # reading them included


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the validation images, a folder for each class")
    parser.add_argument("weights", nargs="+", metavar="WEIGHTS", help="files or URLs of weights of 1,000 classes")
    parser.add_argument("--model", help="resnet50, alexnet, ... where the weights do not say it")
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are not safetensors (.pth)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(given)
    try:
        rows = evaluate(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{'weights':<28}{'images':>10}{'top-1':>9}{'published':>11}{'top-5':>9}{'published':>11}{'images/s':>12}")
    for row in rows:
        published = [f"{value:.3f}" if value is not None else "-" for value in (row.published_top1, row.published_top5)]
        print(f"{row.weights:<28}{row.images:>10,}{row.top1:>9.3f}{published[0]:>11}{row.top5:>9.3f}{published[1]:>11}"
              f"{row.images_per_second:>12.1f}")  # fmt: skip
    print(json.dumps([asdict(row) for row in rows]))


def evaluate(arguments: argparse.Namespace) -> list[Row]:
    files = labelled_files(arguments.directory)
    device = choose_device(arguments.device)
    rows = []
    for source in arguments.weights:
        classifier = load_classifier(source, arguments.model, allow_pickle=arguments.allow_pickle)
        if len(classifier.classes) != 1000:
            raise ValueError(f"{source} tells {len(classifier.classes)} classes apart, ImageNet-1k has 1,000")
        stem = source.rpartition("/")[2].rpartition(".")[0]
        rows.append(row(classifier, files, stem, device))
    return rows


def labelled_files(directory: Path) -> list[tuple[Path, int]]:
    """Return every image with the number of its class."""
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder: give the one that holds n01440764 and the other 999 classes")
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    if len(folders) != 1000:
        raise ValueError(f"{directory} holds {len(folders)} folders, not one for each of ImageNet's 1,000 classes")
    return [(path, label) for label, folder in enumerate(folders) for path in images_in(folder)]


@torch.inference_mode()
def row(classifier: Classifier, files: Sequence[tuple[Path, int]], stem: str, device: torch.device) -> Row:
    """Measure the accuracies over all images that can be read; the others are named and not counted."""
    network = prepare_for_inference(classifier.network).to(device)
    logits, labels = [], []
    started = time.perf_counter()
    with Progress(len(files), unit="image", label=stem) as progress:
        for start in range(0, len(files), BATCH):
            part = list(readable(classifier, files[start : start + BATCH]))
            progress.update(len(files[start : start + BATCH]))
            if part:
                pixels = torch.stack([each for each, _ in part]).to(device, memory_format=torch.channels_last)
                logits.append(network(pixels).float().cpu())
                labels += [label for _, label in part]
    if not labels:
        raise ValueError("none of the images can be read")
    seconds = time.perf_counter() - started
    top1, top5 = (100 * (1 - top_k_error(torch.cat(logits), torch.tensor(labels), k)) for k in (1, 5))
    return Row(stem, len(labels), top1, top5, *PUBLISHED.get(stem, (None, None)), len(labels) / seconds)


def readable(classifier: Classifier, files: Sequence[tuple[Path, int]]) -> Iterator[tuple[torch.Tensor, int]]:
    for path, label in files:
        try:
            yield classifier.preprocess(read_image(path)), label
        except (ValueError, OSError) as error:
            print(f"skipped: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
