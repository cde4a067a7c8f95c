"""What pictures show: files, folders and PIL images to labels with probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genpipe.hardware import choose_device
from genpipe.vision.pictures import pictures_in, read_picture
from genpipe.vision.scene_model import scene_classifier
from genpipe.vision.weights import Classifier, load_classifier

BATCH = 32  # pictures in memory at a time

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Label:
    """One class of a classifier."""

    index: int
    name: str
    probability: float  # those of all classes sum to one


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one picture: its likeliest labels, the first the likeliest, or why there are none."""

    source: str  # the file, or "picture 3" for the third of those given as PIL images
    labels: tuple[Label, ...]
    error: str | None = None


def classify(
    pictures: Picture | Sequence[Picture],
    *,
    model: str | Classifier | None = None,
    weights: str | Path | None = None,
    top: int = 5,
    device: str | torch.device | None = None,
    allow_pickle: bool = False,
) -> list[Prediction]:
    """Say what is in a picture, in several, or in those of a folder: one prediction each, in the order given.

    A picture that cannot be read raises when it was given alone; among others its prediction says why, in one line.

    Args:
        pictures: a file, a folder (its pictures, sorted by name; not those of folders inside it), a PIL image, or a list
            of any of these.
        model: the weights' architecture ("resnet50") where the file does not say it, or a loaded classifier.
        weights: a file or URL, see `load_classifier`; not together with a loaded classifier. With neither, the embedded
            scene classifier names what is surest to be there, of all that genpipe's world has.
        top: how many labels to return, 1 or more; all of them where there are fewer classes.
        device: by default the best there is. A classifier that was passed in stays where it is.
        allow_pickle: read weights that are not safetensors.

    Raises:
        ValueError: an architecture without weights, no pictures, or a `top` out of range; weights or a picture that
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
    sources = list(_expand(pictures))
    # Alone, a picture that cannot be read is told before the weights are loaded.
    alone = len(sources) == 1 and (isinstance(pictures, Image.Image) or not _is_folder(pictures))
    images = [read_picture(sources[0][1])] if alone and isinstance(pictures, Picture) else None
    classifier = _classifier(model, weights, device, allow_pickle)
    if images is not None:
        return [Prediction(sources[0][0], labels) for labels in label(classifier, images, top)]
    predictions = []
    for start in range(0, len(sources), BATCH):
        predictions += _classify_batch(classifier, sources[start : start + BATCH], top)
    return predictions


@torch.inference_mode()
def label(classifier: Classifier, images: Sequence[Image.Image], top: int) -> list[tuple[Label, ...]]:
    """The likeliest labels of each picture, computed as one batch on the device that the network is on."""
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


def _expand(pictures: Picture | Sequence[Picture]) -> Iterator[tuple[str, Picture]]:
    """Every picture with its name, folders opened."""
    several = [pictures] if isinstance(pictures, Picture) else pictures
    if not several:
        raise ValueError("no pictures given: pass a file, a folder, a PIL image or a list of these")
    for number, picture in enumerate(several, 1):
        if isinstance(picture, Image.Image):
            yield f"picture {number}", picture
        elif _is_folder(picture):
            yield from ((str(path), path) for path in pictures_in(Path(picture)))
        else:
            yield str(picture), picture


def _is_folder(picture: object) -> bool:
    return isinstance(picture, str | Path) and Path(picture).is_dir()


def _classifier(
    model: str | Classifier | None, weights: str | Path | None, device: str | torch.device | None, allow_pickle: bool
) -> Classifier:
    if isinstance(model, Classifier):
        return model
    target = choose_device(device)
    classifier = scene_classifier() if weights is None else load_classifier(weights, model, allow_pickle=allow_pickle)
    classifier.network.to(target)
    return classifier


def _classify_batch(classifier: Classifier, sources: Sequence[tuple[str, Picture]], top: int) -> Iterator[Prediction]:
    images: list[Image.Image] = []
    errors: list[str | None] = []
    for name, picture in sources:
        try:
            images.append(read_picture(picture))
            errors.append(None)
        except ValueError as error:
            errors.append(str(error))
        except OSError as error:
            errors.append(f"{name}: {error.strerror}")
    found = iter(label(classifier, images, top) if images else [])
    for (name, _), error in zip(sources, errors, strict=True):
        yield Prediction(name, next(found) if error is None else (), error)
