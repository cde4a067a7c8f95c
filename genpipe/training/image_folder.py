"""A classifier from a person's own folder: a folder of images for each class, in the form of torchvision's ImageFolder.

    train_on_folder("flowers", Path("runs/flowers"), architecture="resnet18", budget=Budget(minutes=30), accelerator=…)

The best weights so far are in `best.safetensors`, which `genpipe.vision.weights.load_classifier` and `genpipe classify
--weights` read. Killed and begun again, the training continues.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.messages import listed
from genpipe.progress import Progress
from genpipe.training.classifier import train_classifier
from genpipe.training.folder import Report
from genpipe.training.loop import Budget, Randomness
from genpipe.vision.architectures import build
from genpipe.vision.metrics import top_k_error
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.reading import SUFFIXES, read_image, why_unusable
from genpipe.vision.summary import summary
from genpipe.vision.transfer import freeze, replace_head
from genpipe.vision.weights import Classifier, load_classifier, save_classifier

BEST = "best.safetensors"
HELD_OUT = 10  # one image of a class in so many measures how good a training is, where there is no folder of them
LEAST_AREA, WIDEST = 0.35, 4 / 3  # of a random crop: its share of the image, and its width over its height
RATE, GENTLE_RATE = 1e-3, 3e-4  # peak learning rates: of what starts fresh, and of what was trained before
BATCH = 32
NAMED = 3  # files in an error of one line


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory, and the class of each."""

    pixels: Tensor  # (N, C, size, size) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds: images to learn from, others to be measured by, and what became of its files."""

    classes: tuple[str, ...]
    training: LabelledImages
    validation: LabelledImages
    report: Report


def read_image_folder(directory: str | Path, preprocess: Preprocess) -> ImageFolder:
    """Check and read every image of the folders in `directory`, one per class, in one pass.

    Where `directory` holds `train` and `val` and nothing else, the classes are in these; else one image in ten of each
    class is held out. Images come out as `read_image` gives them, the central square resampled to the side that the
    preprocessing resizes to. Memory: 196 KB per image of 256 pixels. Images that cannot be read are skipped and named in
    the report.

    Raises:
        ValueError: not a folder, fewer than two classes, or classes without an image that can be read.
        OSError: a folder cannot be read.
    """
    directory, report = Path(directory), Report()
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder: give one that holds a folder of images for each class")
    parts = [path.name for path in _folders(directory)]
    split = parts == ["train", "val"]
    source = directory / "train" if split else directory
    classes = tuple(path.name for path in _folders(source))
    if len(classes) < 2:
        raise ValueError(
            f"{source} holds {_count(len(classes), 'folder', 'folders')} of images, and a classifier needs 2 classes "
            "or more: put the images of each class into a folder with its name"
        )
    read = _read_all(source, directory, classes, preprocess, report)
    seen = {label for label, _ in read}
    missing = [name for label, name in enumerate(classes) if label not in seen]
    if missing:
        skipped = [f"; {name}, {why}" for why, names in report.skipped.items() for name in names]
        if len(skipped) > NAMED:
            skipped[NAMED:] = [f"; {len(skipped) - NAMED} more cannot be used"]
        raise ValueError(
            f"{source} has {_count(len(missing), 'class', 'classes')} without an image that can be read "
            f"({listed(missing)}{''.join(skipped)}): add images, or remove the folders"
        )
    if split:
        others = sorted({path.name for path in _folders(directory / "val")} - set(classes))
        if others:
            raise ValueError(f"{directory / 'val'} has classes that are not in train: {listed(others)}")
        held = _read_all(directory / "val", directory, classes, preprocess, report)
        if not held:
            raise ValueError(f"{directory / 'val'} holds no image that can be read: put some of each class into it")
    else:
        read, held = _hold_out(read)
    if not held:
        raise ValueError(f"{directory} leaves no image to measure by: give at least one class 2 images or more")
    report.used = len(read) + len(held)
    return ImageFolder(classes, _stack(read), _stack(held), report)


def train_on_folder(
    directory: str | Path,
    out: Path,
    *,
    budget: Budget,
    accelerator: Accelerator,
    architecture: str | None = None,
    weights: str | Path | None = None,
    frozen: Sequence[str] | None = (),
    allow_pickle: bool = False,
    size: int | None = None,
    batch: int = BATCH,
    smoothing: float = 0.1,
    seed: int = 0,
    measure: Callable[[Classifier, LabelledImages], float] | None = None,
    on_images: Callable[[Report], None] | None = None,
    on_validation: Callable[[float, bool], None] | None = None,
) -> Classifier:
    """Train a classifier on a folder, see `read_image_folder`, and return the best that it was.

    Images are cropped at random and mirrored; the learning rate warms up, stays, and falls as a cosine; weights are
    averaged. At each checkpoint the top-1 error on the held-out images is measured.

    Args:
        out: holds the state of the training, its log, and the best weights.
        architecture: see `genpipe.vision.architectures`; by default that of `weights`, else resnet18.
        weights: a file to start from, see `load_classifier`; its head is replaced by one of the folder's classes.
        frozen: layers that stay as they are; None is all but the head.
        allow_pickle: read weights that are not safetensors, such as the published ones.
        size: side of the images that the network sees, in pixels; by default what its weights were trained on, 32 for
            lenet5, 224 for the others.
        batch: images per step.
        smoothing: of the labels.
        measure: the error of a classifier on the held-out images; by default `held_out_error`.
        on_images: called once the images are read.
        on_validation: called at each checkpoint with that error and whether none was lower so far.

    Raises:
        ValueError: a folder, weights, layers, size, batch or smoothing that cannot be used, or `out` holds another training.
        OSError: a file cannot be read or written.
        FloatingPointError: the loss is not finite; the last checkpoint is intact.
    """
    if batch < 2:
        raise ValueError(f"batch {batch} is too small: batch norms need 2 images or more")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder: give --out one that is new, or that of a training to continue")
    start = _starting_point(architecture, weights, size, allow_pickle)
    folder = read_image_folder(directory, start.preprocess)
    if on_images is not None:
        on_images(folder.report)
    measure = measure or partial(held_out_error, accelerator=accelerator)
    torch.manual_seed(seed)
    network = build(start.architecture, len(folder.classes)) if weights is None else start.network
    network = network if weights is None else replace_head(network, len(folder.classes))
    if frozen is None or frozen:
        freeze(network, frozen)
    model = replace(start, network=network, classes=folder.classes)
    best = out / BEST
    least = float("inf")
    if best.exists():
        earlier = load_classifier(best)
        if (earlier.architecture, earlier.classes) != (model.architecture, model.classes):
            raise ValueError(f"{best} is of another training: repeat that one's arguments, or give another --out")
        least = measure(earlier, folder.validation)

    def keep_the_best(averaged: nn.Module) -> None:
        nonlocal least
        candidate = replace(model, network=averaged)
        error = measure(candidate, folder.validation)
        better = error <= least  # of equals the one that learned longer
        if better:
            save_classifier(candidate, best)
            least = error
        if on_validation is not None:
            on_validation(error, better)

    def batches(randomness: Randomness) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(folder.training.labels), (batch,), generator=randomness.noise)
        levels = augment(folder.training.pixels[chosen], model.preprocess.crop, randomness.noise)
        return model.preprocess.normalise(levels), folder.training.labels[chosen]

    fresh = weights is None or frozen is None
    train_classifier(
        network.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        batches,
        directory=out,
        budget=budget,
        accelerator=accelerator,
        peak_rate=RATE if fresh else GENTLE_RATE,
        smoothing=smoothing,
        seed=seed,
        on_checkpoint=keep_the_best,
    )
    return load_classifier(best)


def augment(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return of each image (B, C, S, S) a random part, 35 to 100 % of it and not much wider than high or higher than wide,
    in half of the cases mirrored: (B, C, size, size) float32, on the scale of the pixels."""
    count = len(pixels)
    area, shape, x, y, mirror = torch.rand(5, count, generator=generator)
    side = (LEAST_AREA + (1 - LEAST_AREA) * area).sqrt()
    stretch = WIDEST ** (shape - 0.5)
    width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    # Shares of the image to the coordinates of `grid_sample`, -1 … 1.
    part = torch.zeros(count, 2, 3)
    part[:, 0, 0] = torch.where(mirror < 0.5, -width, width)
    part[:, 1, 1] = height
    part[:, 0, 2] = (2 * x - 1) * (1 - width)
    part[:, 1, 2] = (2 * y - 1) * (1 - height)
    grid = F.affine_grid(part, [count, pixels.shape[1], size, size], align_corners=False)
    return F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)


def _starting_point(
    architecture: str | None, weights: str | Path | None, size: int | None, allow_pickle: bool
) -> Classifier:
    """What is to be trained, checked; without weights its network stands for the architecture alone."""
    if weights is None:
        architecture = architecture or "resnet18"
        grey = architecture == "lenet5"
        settings = Preprocess(36, 32, (0.5,), (0.5,)) if grey else Preprocess()
        with torch.device("meta"):
            start = Classifier(build(architecture), architecture, (), settings)
    else:
        start = load_classifier(weights, architecture, allow_pickle=allow_pickle)
    settings = start.preprocess
    if size is not None and size < 1:
        raise ValueError(f"size {size} is out of range: use 1 pixel or more")
    if size is not None:
        settings = replace(settings, resize=round(size * settings.resize / settings.crop), crop=size)
    summary(start.network, (len(settings.mean), settings.crop, settings.crop))
    return replace(start, preprocess=settings)


@torch.no_grad()
def held_out_error(classifier: Classifier, images: LabelledImages, *, accelerator: Accelerator) -> float:
    """Return the top-1 error of a classifier on the middles of images, on the accelerator's device."""
    network = classifier.network.eval().to(accelerator.device)
    crop, side = classifier.preprocess.crop, images.pixels.shape[-1]
    start = round((side - crop) / 2)
    middles = images.pixels[..., start : start + crop, start : start + crop]
    logits = []
    for part in middles.split(BATCH):
        with accelerator.autocast():
            logits.append(network(classifier.preprocess.normalise(part).to(accelerator.device)).float().cpu())
    return top_k_error(torch.cat(logits), images.labels)


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_all(
    source: Path, directory: Path, classes: Sequence[str], preprocess: Preprocess, report: Report
) -> list[tuple[int, Tensor]]:
    """The squares of every class's images with its number; what is skipped is named as seen from `directory`."""
    whole = replace(preprocess, crop=preprocess.resize)
    files = [
        (label, path)
        for label, name in enumerate(classes)
        for path in sorted((source / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        if path.is_file() or not path.exists()  # a link to nothing is told of
    ]
    read = []
    with Progress(len(files), unit="image", label="reading") as progress:
        for label, path in files:
            try:
                read.append((label, whole.square(read_image(path))))
            except ValueError as error:
                report.skip(path.relative_to(directory).as_posix(), why_unusable(error, str(path)))
            except OSError as error:
                report.skip(path.relative_to(directory).as_posix(), f"cannot be read ({error.strerror})")
            progress.update()
    return read


def _hold_out(read: Sequence[tuple[int, Tensor]]) -> tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]]:
    """Images to learn from and images to measure by: of each class one in ten, at least one where it has several."""
    training, held = [], []
    for label, group in groupby(read, key=itemgetter(0)):
        mine = list(group)
        random.Random(label).shuffle(mine)
        share = max(len(mine) // HELD_OUT, 1) if len(mine) > 1 else 0
        held += mine[:share]
        training += mine[share:]
    return training, held


def _stack(read: Sequence[tuple[int, Tensor]]) -> LabelledImages:
    return LabelledImages(torch.stack([pixels for _, pixels in read]), torch.tensor([label for label, _ in read]))
