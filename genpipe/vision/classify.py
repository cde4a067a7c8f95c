"""What images show: files, folders and PIL images to labels with probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genpipe.hardware import choose_device
from genpipe.vision.reading import images_in, read_image
from genpipe.vision.scene_model import scene_classifier
from genpipe.vision.weights import Classifier, load_classifier

BATCH = 32  # images in memory at a time

ImageSource = str | Path | Image.Image


@dataclass(frozen=True)
class Label:
    """One class of a classifier."""

    index: int
    name: str
    probability: float  # those of all classes sum to one


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image: its likeliest labels, the first the likeliest, or why there are none."""

    source: str  # the file, or "image 3" for the third of those given as PIL images
    labels: tuple[Label, ...]
    error: str | None = None


def classify(
    images: ImageSource | Sequence[ImageSource],
    *,
    model: str | Classifier | None = None,
    weights: str | Path | None = None,
    top: int = 5,
    device: str | torch.device | None = None,
    allow_pickle: bool = False,
    batch: int = BATCH,
) -> list[Prediction]:
    """Say what is in an image, in several, or in those of a folder: one prediction each, in the order given.

    An image that cannot be read raises when it was given alone; among others its prediction says why, in one line.

    Args:
        images: a file, a folder (its images, sorted by name; not those of folders inside it), a PIL image, or a list
            of any of these.
        model: the weights' architecture ("resnet50") where the file does not say it, or a loaded classifier.
        weights: a file or URL, see `load_classifier`; not together with a loaded classifier. With neither, the embedded
            scene classifier names what is surest to be there, of all that genpipe's world has.
        top: how many labels to return, 1 or more; all of them where there are fewer classes.
        device: by default the best there is. A classifier that was passed in stays where it is.
        allow_pickle: read weights that are not safetensors.
        batch: images that go through the network together.

    Raises:
        ValueError: an architecture without weights, no images, or a `top` or `batch` out of range; weights or an image that
            cannot be used.
        OSError: a file cannot be read.
    """
    if isinstance(model, Classifier) and weights is not None:
        raise ValueError("both a classifier and weights: give one, for example weights='resnet50.safetensors'")
    if isinstance(model, str) and weights is None:
        raise ValueError(
            f"no weights given for {model}: pass a file or URL, for example weights='resnet50.safetensors'"
        )
    if top < 1:
        raise ValueError(f"top {top} is out of range: use 1 or more labels")
    if batch < 1:
        raise ValueError(f"batch {batch} is out of range: use 1 or more images")
    sources = list(_expand(images))
    # Alone, an image that cannot be read is told before the weights are loaded.
    alone = len(sources) == 1 and (isinstance(images, Image.Image) or not _is_folder(images))
    opened = [read_image(sources[0][1])] if alone else None
    classifier = _classifier(model, weights, device, allow_pickle)
    if opened is not None:
        return [Prediction(sources[0][0], labels) for labels in label(classifier, opened, top)]
    predictions = []
    for start in range(0, len(sources), batch):
        predictions += _classify_batch(classifier, sources[start : start + batch], top)
    return predictions


@torch.inference_mode()
def label(classifier: Classifier, images: Sequence[Image.Image], top: int) -> list[tuple[Label, ...]]:
    """Return the likeliest labels of each image, computed as one batch on the device that the network is on."""
    first = next(classifier.network.parameters())
    pixels = torch.stack([classifier.preprocess(image) for image in images])  # (B, C, H, W)
    logits: Tensor = classifier.network(pixels.to(first.device, first.dtype))
    if not logits.isfinite().all():
        raise ValueError(
            f"the {classifier.architecture} gives NaN or infinity for these images: its weights are damaged"
        )
    # In double precision the probabilities of a thousand classes sum to one to the last digit that is shown.
    best = logits.double().softmax(dim=1).topk(min(top, len(classifier.classes)))
    return [
        tuple(
            Label(index, classifier.classes[index], probability)
            for index, probability in zip(indices, probabilities, strict=True)
        )
        for indices, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _expand(images: ImageSource | Sequence[ImageSource]) -> Iterator[tuple[str, ImageSource]]:
    """Every image with its name, folders opened."""
    several = [images] if isinstance(images, ImageSource) else images
    if not several:
        raise ValueError("no images given: pass a file, a folder, a PIL image or a list of these")
    for number, image in enumerate(several, 1):
        if isinstance(image, Image.Image):
            yield f"image {number}", image
        elif _is_folder(image):
            yield from ((str(path), path) for path in images_in(Path(image)))
        else:
            yield str(image), image


def _is_folder(image: object) -> bool:
    return isinstance(image, str | Path) and Path(image).is_dir()


def _classifier(
    model: str | Classifier | None, weights: str | Path | None, device: str | torch.device | None, allow_pickle: bool
) -> Classifier:
    if isinstance(model, Classifier):
        return model
    target = choose_device(device)
    classifier = scene_classifier() if weights is None else load_classifier(weights, model, allow_pickle=allow_pickle)
    classifier.network.to(target)
    return classifier


def _classify_batch(
    classifier: Classifier, sources: Sequence[tuple[str, ImageSource]], top: int
) -> Iterator[Prediction]:
    images: list[Image.Image] = []
    errors: list[str | None] = []
    for name, image in sources:
        try:
            images.append(read_image(image))
            errors.append(None)
        except ValueError as error:
            errors.append(str(error))
        except OSError as error:
            errors.append(f"{name}: {error.strerror}")
    found = iter(label(classifier, images, top) if images else [])
    for (name, _), error in zip(sources, errors, strict=True):
        yield Prediction(name, next(found) if error is None else (), error)
