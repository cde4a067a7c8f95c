import hashlib
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genpipe.vision.architectures import build
from genpipe.vision.imagenet import PUBLISHED, imagenet_classes
from genpipe.vision.lenet import LeNet5
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.weights import Classifier, load_classifier, load_weights, save_classifier

GREY = Preprocess(resize=32, crop=32, mean=(0.5,), std=(0.25,), interpolation="bicubic")


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(LeNet5(3).eval(), "lenet5", ("кот", "dog", "pirate, pirate ship"), GREY)


@pytest.fixture
def saved(tmp_path: Path, classifier: Classifier) -> Path:
    save_classifier(classifier, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def hashed(path: Path, stem: str = "net") -> Path:
    """A copy of a file with its SHA-256 prefix in its name."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return Path(shutil.copy(path, path.with_name(f"{stem}-{digest}{path.suffix}")))


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_classifier_comes_back_from_its_file_alone(saved: Path, classifier: Classifier) -> None:
    loaded = load_classifier(saved)
    assert same(loaded.network, classifier.network) and not loaded.network.training
    assert (loaded.architecture, loaded.classes) == ("lenet5", classifier.classes)
    assert loaded.preprocess == GREY
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    torch.manual_seed(5)
    load_classifier(saved)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_half_precision_files_are_computed_in_single(tmp_path: Path, classifier: Classifier) -> None:
    save_classifier(classifier, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = load_classifier(tmp_path / "half.safetensors").network
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert same(loaded, LeNet5(3)) is False
    assert same(loaded.half(), deepcopy(classifier.network).half())


def test_a_published_name_says_the_network_and_the_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = build("resnet18")
    torch.save(network.state_dict(), tmp_path / "file.pth")
    path = hashed(tmp_path / "file.pth", "resnet18")
    monkeypatch.setitem(PUBLISHED, path.stem, ("resnet18", 232))
    loaded = load_classifier(path, allow_pickle=True)
    assert same(loaded.network, network)
    assert loaded.architecture == "resnet18" and loaded.classes == imagenet_classes()
    assert loaded.preprocess == Preprocess(resize=232)


def test_files_from_before_batches_were_counted_load(tmp_path: Path) -> None:
    network = build("resnet18", 4)
    old = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "old.safetensors")
    fresh = build("resnet18", 4)
    load_weights(fresh, tmp_path / "old.safetensors")
    assert same(fresh, network)


def test_a_url_gives_the_classifier_that_it_names(tmp_path: Path, classifier: Classifier) -> None:
    for name, classes in (("a", ("cat", "dog", "fox")), ("b", ("ship", "car", "bus"))):
        (tmp_path / name).mkdir()
        save_classifier(replace(classifier, classes=classes), tmp_path / name / "same.safetensors")
        assert load_classifier((tmp_path / name / "same.safetensors").as_uri()).classes == classes


def test_a_pickle_is_read_only_when_asked_for(tmp_path: Path, classifier: Classifier) -> None:
    path = tmp_path / "net.pth"
    torch.save(classifier.network.state_dict(), path)
    with pytest.raises(ValueError, match=r"net.pth is not a .safetensors file but a pickle.*allow_pickle"):
        load_weights(LeNet5(3), path)
    model = LeNet5(3)
    load_weights(model, path, allow_pickle=True)
    assert same(model, classifier.network)


class Payload:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [Payload(), {"state_dict": {}, "epoch": 3}, LeNet5(3)])
def test_a_pickle_with_more_than_tensors_is_refused_and_runs_nothing(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "net.pth")
    with pytest.raises(
        ValueError, match=r"net.pth (is damaged, or holds more than tensors|does not hold a state dict)"
    ):
        load_weights(LeNet5(3), "net.pth", allow_pickle=True)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_cut_file_is_a_line(saved: Path, classifier: Classifier, name: str) -> None:
    whole = saved.with_name("whole.pth")
    torch.save(classifier.network.state_dict(), whole)
    data = (saved if name.endswith("safetensors") else whole).read_bytes()
    path = saved.with_name(name)
    for length in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"{name} is (truncated|damaged)") as caught:
            load_weights(LeNet5(3), path, allow_pickle=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"\x80\x02\x85.", b"\x80\x02\x8a\x01.", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x05", b".", b"(l0\n."],
)  # fmt: skip
def test_a_malformed_pickle_is_a_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"w.pth (is damaged, or holds more|does not hold a state dict)") as caught:
        load_weights(LeNet5(3), tmp_path / "w.pth", allow_pickle=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, classifier: Classifier, value: float) -> None:
    with torch.no_grad():
        classifier.network.get_parameter("features.c3.weight")[0, 0] = value
    save_classifier(classifier, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"nan.safetensors holds weights that are not finite .*: features.c3.weight;"):
        load_classifier(tmp_path / "nan.safetensors")


def test_another_head_is_one_clear_error(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"mine.safetensors has a head of 3 classes where the model has 10: build"):
        load_weights(LeNet5(10), saved)


def test_a_file_without_metadata_that_is_not_of_imagenet_says_what_to_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(build("resnet18w16", 7).state_dict(), tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"has a head of 7 classes where .* 1000: .* save_classifier with the names"):
        load_classifier(tmp_path / "head.safetensors", "resnet18w16")
    save_file(LeNet5(1000).state_dict(), tmp_path / "grey.safetensors")
    with pytest.raises(
        ValueError, match=r"grey.safetensors states no preprocessing, and ImageNet's does not suit lenet5"
    ):
        load_classifier(tmp_path / "grey.safetensors", "lenet5")


def test_all_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    state = LeNet5(3).state_dict()
    state["extra"] = state.pop("classifier.f6.bias")
    state["features.c1.weight"] = torch.zeros(6, 3, 5, 5)
    save_file(state, tmp_path / "other.safetensors")
    model = LeNet5(3)
    before = model.state_dict()["features.c1.weight"].clone()
    with pytest.raises(ValueError) as caught:
        load_weights(model, tmp_path / "other.safetensors")
    assert str(caught.value).endswith(
        "does not fit a LeNet5; missing: classifier.f6.bias; unexpected: extra; "
        "wrong shape: features.c1.weight is (6, 3, 5, 5), not (6, 1, 5, 5)"
    )
    assert torch.equal(before, model.state_dict()["features.c1.weight"])


def test_what_the_file_says_is_not_overruled(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds weights of lenet5, not of resnet50: ask for lenet5"):
        load_classifier(saved, "resnet50")
    save_file(build("resnet18w16").state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="does not say what its weights are for: name the model"):
        load_classifier(tmp_path / "bare.safetensors")
    assert load_classifier(tmp_path / "bare.safetensors", "resnet18w16").classes == imagenet_classes()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("preprocess", '{"resize": 1}', "is not a preprocessing: it lacks 'mean'"),
        ("preprocess", "[]", "is not a preprocessing"),
        ("preprocess", "[" * 100_000, "recursion"),
        ("preprocess", json.dumps({**GREY.to_dict(), "crop": 10**9}), "crop 1000000000 is out of range: use a whole number"),
        ("preprocess", json.dumps({**GREY.to_dict(), "resize": 36.5}), "resize 36.5 is out of range"),
        ("preprocess", json.dumps({**GREY.to_dict(), "std": [1e-400]}), "use finite means, positive stds"),
        ("preprocess", json.dumps({**GREY.to_dict(), "mean": ["x" * 10_000]}), "is not a preprocessing"),
        ("preprocess", json.dumps({**GREY.to_dict(), "interpolation": "x" * 10_000}), "interpolation 'x"),
        ("classes", '"abc"', "classes is 'abc', not a list of names"),
        ("classes", "[[], [], []]", "not a list of names"),
        ("classes", "{", "Expecting property name"),
        ("classes", '["a"]', "a classifier of 1 classes has nothing to choose"),
        ("architecture", "[" * 100_000, "model '[[["),
        ("architecture", "\x1b[31m", r"model '\x1b[31m' is not known"),
    ],
)  # fmt: skip
def test_damaged_metadata_are_a_line(tmp_path: Path, key: str, value: str, says: str) -> None:
    metadata = {"architecture": "lenet5", "classes": '["a", "b", "c"]', "preprocess": json.dumps(GREY.to_dict())}
    save_file(LeNet5(3).state_dict(), tmp_path / "odd.safetensors", metadata=metadata | {key: value})
    with pytest.raises(ValueError, match=r"odd.safetensors has damaged metadata: ") as caught:
        load_classifier(tmp_path / "odd.safetensors")
    assert says in str(caught.value) and len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path) -> None:
    state = LeNet5(3).state_dict()
    state["classifier.fc.bias"] = torch.ones(3, dtype=torch.int64)
    save_file(state, tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"does not fit a LeNet5; wrong type of number: classifier.fc.bias$"):
        load_weights(LeNet5(3), tmp_path / "whole.safetensors")
    save_file({f"x{index}": torch.ones(1) for index in range(5000)}, tmp_path / "many.safetensors")
    with pytest.raises(ValueError, match=r"unexpected: x0, .* and 4,990 more$"):
        load_weights(LeNet5(3), tmp_path / "many.safetensors")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Preprocess(31, 31, (0.5,), (0.5,)), "at features.c5 (Conv2d) 4×4 falls below one"),
        (Preprocess(32, 32), "has the wrong channels: features.c1 (Conv2d) takes 1, not 3"),
    ],
)
def test_a_preprocessing_that_the_network_cannot_take_is_refused(
    tmp_path: Path, settings: Preprocess, says: str
) -> None:
    save_classifier(Classifier(LeNet5(3), "lenet5", ("a", "b", "c"), settings), tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"the preprocessing in \S*odd.safetensors does not suit lenet5: ") as caught:
        load_classifier(tmp_path / "odd.safetensors")
    assert says in str(caught.value)


def test_what_cannot_be_saved_is_refused(tmp_path: Path, classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="genpipe writes no pickles"):
        save_classifier(classifier, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="2 class names for a head of 3"):
        save_classifier(Classifier(classifier.network, "lenet5", ("a", "b"), GREY), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
