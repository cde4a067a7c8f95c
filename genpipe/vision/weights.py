"""Weights of classifiers: published files or one's own, local or by URL, checked and loaded strictly.

A file of ours is safetensors whose metadata say what it is: `architecture`, and as JSON `classes` and `preprocess`.
"""

import hashlib
import json
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from genpipe.files import write_safetensors
from genpipe.vision.architectures import build, find_head
from genpipe.vision.imagenet import PUBLISHED, imagenet_classes
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.summary import summary

# As torch's hub names files: eight digits or more of the file's SHA-256 before the suffix.
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


@dataclass(frozen=True)
class Classifier:
    """A network with what its logits mean and what its pictures have to look like."""

    network: nn.Module  # pixels (B, C, H, W), as `preprocess` makes them -> logits (B, len(classes))
    architecture: str
    classes: tuple[str, ...]
    preprocess: Preprocess


def load_classifier(source: str | Path, architecture: str | None = None, *, allow_pickle: bool = False) -> Classifier:
    """The classifier in a weights file, on the CPU in fp32, in evaluation mode.

    A file whose metadata are missing is taken for one of ImageNet's 1,000 classes, with the published preprocessing.

    Args:
        source: a file, or a URL (https://, file://), which is fetched into the cache of torch's hub.
        architecture: resnet50, alexnet, …; not needed where the file says it, in its metadata or by a published name.
        allow_pickle: read files that are not safetensors, with torch's unpickler for tensors only.

    Raises:
        ValueError: the file is damaged, a pickle that was not asked for, does not have the hash in its name, or does not
            fit the architecture.
        OSError: there is no such file, or it cannot be fetched.
    """
    path = fetch(source)
    tensors, metadata = _read(path, allow_pickle)
    published, resize = PUBLISHED.get(path.stem, (None, 256))
    stated = metadata.get("architecture", published)
    if architecture is not None and stated is not None and architecture != stated:
        raise ValueError(f"{path} holds weights of {stated}, not of {architecture}: ask for {stated}")
    name = architecture or stated
    if name is None:
        raise ValueError(f"{path} does not say what its weights are for: name the model, for example resnet50")
    try:
        classes = tuple(str(label) for label in json.loads(metadata["classes"])) if metadata else imagenet_classes()
        settings = Preprocess.from_dict(json.loads(metadata["preprocess"])) if metadata else Preprocess(resize=resize)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from None
    with torch.device("meta"):
        network = build(name, len(classes))
    try:
        summary(network, (len(settings.mean), settings.crop, settings.crop))
    except ValueError as error:
        whose = f"the preprocessing in {path}" if metadata else f"{path} states no preprocessing, and ImageNet's"
        raise ValueError(f"{whose} does not suit {name}: {error}") from None
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn only to be replaced
        network = build(name, len(classes))
    _fill(network, tensors, path)
    return Classifier(network.eval(), name, classes, settings)


def load_weights(model: nn.Module, source: str | Path, *, allow_pickle: bool = False) -> None:
    """Load a weights file into a network that fits it exactly. Arguments and errors as in `load_classifier`."""
    path = fetch(source)
    _fill(model, _read(path, allow_pickle)[0], path)


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
    """The tensors and the metadata of a .safetensors file, floating-point ones in fp32.

    Raises:
        ValueError: it is damaged or something else.
        OSError: there is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
            return {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not safetensors: {error}; fetch it again") from None


def fetch(source: str | Path) -> Path:
    """The local file of a path or a URL, fetched into torch's hub cache if it is not there.

    Raises:
        ValueError: the file's SHA-256 does not begin with the digits in its name (resnet50-0676ba61.pth).
        OSError: there is no such file, or it cannot be fetched.
    """
    if not isinstance(source, str) or not re.match(r"(https?|file)://", source):
        path = Path(source).expanduser()
        _check_hash(path)
        return path
    name = unquote(urlsplit(source).path).rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not name:
        raise ValueError(f"{source} names no file: give the URL of a .safetensors file")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        match = _HASH.search(name)
        try:
            torch.hub.download_url_to_file(source, str(path), match and match[1], progress=sys.stderr.isatty())
        except RuntimeError as error:
            raise ValueError(f"{source} is not the file that its name says: {error}") from None
        except OSError as error:
            raise OSError(f"{source} could not be fetched: {error}") from error
    else:
        _check_hash(path)
    return path


def _check_hash(path: Path) -> None:
    with path.open("rb") as file:
        match = _HASH.search(path.name)
        actual = hashlib.file_digest(file, "sha256").hexdigest() if match else ""
    if match and not actual.startswith(match[1]):
        raise ValueError(f"{path} has the SHA-256 {actual[:8]}…, not {match[1]} as its name says: fetch or rename it")


def _read(path: Path, allow_pickle: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and its metadata where it is one of ours."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                keys = file.keys()
                metadata = file.metadata() or {}
                return {key: file.get_tensor(key) for key in keys}, metadata if "classes" in metadata else {}
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or not safetensors: {error}; fetch it again") from None
    if not allow_pickle:
        raise ValueError(
            f"{path} is not a .safetensors file but a pickle, which can run code: to read it all the same, pass "
            "allow_pickle (--allow-pickle)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols of pickle, which it then reads or refuses
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors: fetch it again, or save model.state_dict() alone"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} does not hold a state dict: save model.state_dict() and nothing around it")
    return tensors, {}


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors strictly; one error says everything that does not fit, or that it is only the head."""
    wanted = model.state_dict()
    # torch before 0.4.1 did not count batches, and some published files are older.
    missing = [key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in tensors if key not in wanted]
    wrong = [key for key in tensors if key in wanted and tensors[key].shape != wanted[key].shape]
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
    problems = [
        f"{title}: {', '.join(keys)}"
        for title, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", [f"{key} is {tuple(tensors[key].shape)}, not {tuple(wanted[key].shape)}" for key in wrong]),
        )
        if keys
    ]
    if problems:
        raise ValueError(f"{path} does not fit a {type(model).__name__}; {'; '.join(problems)}")
    model.load_state_dict(wanted | dict(tensors), strict=True)
