"""Weights of classifiers: published files or one's own, local or by URL, checked and loaded strictly.

A file of ours is safetensors whose metadata say what it is: `architecture`, and as JSON `classes` and `preprocess`.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from genpipe.files import write_safetensors
from genpipe.messages import VALUE, listed, one_line, quoted
from genpipe.vision.architectures import build, find_head
from genpipe.vision.downloads import drop, fetch
from genpipe.vision.imagenet import PUBLISHED, imagenet_classes
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.summary import summary


@dataclass(frozen=True)
class Classifier:
    """A network, what its logits mean, and what its images have to look like."""

    network: nn.Module  # pixels (B, C, H, W), as `preprocess` makes them -> logits (B, len(classes))
    architecture: str
    classes: tuple[str, ...]
    preprocess: Preprocess


def load_classifier(source: str | Path, architecture: str | None = None, *, allow_pickle: bool = False) -> Classifier:
    """Load the classifier in a weights file: on the CPU, in fp32, in evaluation mode.

    A file without metadata is taken for one of ImageNet's 1,000 classes, with the published preprocessing.

    Args:
        source: a file, or a URL (https://, http://, file://), see `genpipe.vision.downloads.fetch`.
        architecture: resnet50, alexnet, …; not needed where the file says it, in its metadata or by a published name.
        allow_pickle: read files that are not safetensors, with torch's unpickler for tensors only.

    Raises:
        ValueError: the file is damaged, a pickle that was not asked for, without the hash in its name, with weights that
            are not finite, or does not fit the architecture.
        OSError: there is no such file, or it cannot be fetched.
    """
    with _dropped_if_damaged(source):
        return _load(fetch(source), architecture, allow_pickle)


def load_weights(model: nn.Module, source: str | Path, *, allow_pickle: bool = False) -> None:
    """Load a weights file into a network that fits it exactly. Arguments and errors as in `load_classifier`."""
    with _dropped_if_damaged(source):
        path = fetch(source)
        _fill(model, _read(path, allow_pickle)[0], path)


def _load(path: Path, architecture: str | None, allow_pickle: bool) -> Classifier:
    tensors, metadata = _read(path, allow_pickle)
    published, resize = PUBLISHED.get(path.stem, (None, 256))
    stated = metadata.get("architecture", published)
    if architecture is not None and stated is not None and architecture != stated:
        stated = one_line(stated, VALUE)
        raise ValueError(f"{path} holds weights of {stated}, not of {architecture}: ask for {stated}")
    name = architecture or stated
    if name is None:
        raise ValueError(f"{path} does not say what its weights are for: name the model, for example resnet50")
    try:
        classes = _class_names(json.loads(metadata["classes"])) if metadata else imagenet_classes()
        settings = Preprocess.from_dict(json.loads(metadata["preprocess"])) if metadata else Preprocess(resize=resize)
        with torch.device("meta"):
            network = build(name, len(classes))
    except (KeyError, ValueError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(str(error))
        raise ValueError(f"{path} has damaged metadata: {what}" if metadata else what) from None
    try:
        summary(network, (len(settings.mean), settings.crop, settings.crop))
    except ValueError as error:
        whose = f"the preprocessing in {path}" if metadata else f"{path} states no preprocessing, and ImageNet's"
        raise ValueError(f"{whose} does not suit {name}: {error}") from None
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn only to be replaced
        network = build(name, len(classes))
    _fill(network, tensors, path)
    return Classifier(network.eval(), name, classes, settings)


def save_classifier(classifier: Classifier, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a classifier, wholly or not at all, so that `load_classifier` needs nothing but the file.

    Args:
        classifier: its number of classes has to be that of its network's head.
        path: has to end in .safetensors.
        dtype: of the floating-point tensors in the file; None keeps the network's.

    Raises:
        ValueError: another suffix, or names for another number of classes.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{str(path)!r} has to end in .safetensors: genpipe writes no pickles")
    outputs = find_head(classifier.network)[1].out_features
    if outputs != len(classifier.classes):
        raise ValueError(f"{len(classifier.classes)} class names for a head of {outputs}: give one for each")
    metadata = {
        "architecture": classifier.architecture,
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "preprocess": json.dumps(classifier.preprocess.to_dict()),
    }
    write_tensors(path, classifier.network.state_dict(), metadata, dtype=dtype)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, dtype: torch.dtype | None = None
) -> None:
    """Write a .safetensors file, wholly or not at all.

    Args:
        dtype: of the floating-point tensors in the file; None keeps theirs.

    Raises:
        OSError: the file cannot be written.
    """
    kept = {
        name: tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    write_safetensors(Path(path), kept, {"format": "pt", **metadata})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a .safetensors file, floating-point ones in fp32.

    Raises:
        ValueError: it is damaged or something else.
        OSError: there is no such file.
    """
    tensors, metadata = _read_safetensors(Path(path))
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, metadata


class _Damaged(ValueError):
    """A file that is not what it should be, so that it has to be fetched again."""


@contextmanager
def _dropped_if_damaged(source: str | Path) -> Iterator[None]:
    """Keep no damaged file in the cache."""
    try:
        yield
    except _Damaged:
        drop(source)
        raise


def _read(path: Path, allow_pickle: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and its metadata where it is one of ours."""
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        return tensors, metadata if "classes" in metadata else {}
    if not allow_pickle:
        raise ValueError(
            f"{path} is not a .safetensors file but a pickle, which can run code: to read it all the same, pass "
            "allow_pickle (--allow-pickle)"
        )
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged headers raise errors of several types
        reason = one_line(str(error), 120)
        raise _Damaged(f"{path} is truncated or not safetensors: {reason}; fetch it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols of pickle, which it then reads or refuses
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # malformed pickles raise errors of every type
        raise _Damaged(
            f"{path} is damaged, or holds more than tensors: fetch it again, or save model.state_dict() alone"
        ) from error
    pairs = tensors.items() if isinstance(tensors, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in pairs):
        raise ValueError(f"{path} does not hold a state dict: save model.state_dict() and nothing around it")
    return dict(tensors)


def _class_names(given: object) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str | int | float) for name in given):
        raise ValueError(f"classes is {quoted(given)}, not a list of names")
    return tuple(str(name) for name in given)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors strictly; one error says everything that does not fit, or that it is only the head."""
    wanted = model.state_dict()
    # torch before 0.4.1 did not count batches, and some published files are older.
    missing = [key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in tensors if key not in wanted]
    common = [key for key in tensors if key in wanted]
    wrong = [key for key in common if tensors[key].shape != wanted[key].shape]
    head, layer = find_head(model)
    another_head = bool(wrong) and all(
        key.rpartition(".")[0] == head and tensors[key].shape[1:] == wanted[key].shape[1:] for key in wrong
    )
    if another_head and not missing and not unexpected:
        theirs = len(tensors[wrong[0]])
        raise ValueError(
            f"{path} has a head of {theirs} classes where the model has {layer.out_features}: "
            f"build the model with classes={theirs}, load_weights, and then replace_head, or save_classifier with the "
            "names of its classes"
        )
    shapes = [f"{key} is {tuple(tensors[key].shape)}, not {tuple(wanted[key].shape)}" for key in wrong]
    kinds = [key for key in common if tensors[key].is_floating_point() != wanted[key].is_floating_point()]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes, "wrong type of number": kinds}
    if problems := [f"{title}: {listed(keys)}" for title, keys in found.items() if keys]:
        raise ValueError(f"{path} does not fit a {type(model).__name__}; {'; '.join(problems)}")
    model.load_state_dict(wanted | dict(tensors), strict=True)
    if bad := [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise _Damaged(f"{path} holds weights that are not finite (NaN or infinity): {listed(bad)}; fetch it again")
