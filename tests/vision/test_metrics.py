import math

import pytest
import torch
from torch import Tensor

from genpipe.vision.metrics import (
    average_precision,
    box_iou,
    confusion_matrix,
    mean_average_precision,
    mean_iou,
    per_class_accuracy,
    top_k_error,
)


def drawn(classes: int = 5, n: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 1
    return logits, labels


@pytest.mark.parametrize("k", [1, 2, 4])
def test_errors_and_confusions_are_those_of_scikit_learn(k: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = drawn()
    expected = 1 - metrics.top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k)
    assert top_k_error(logits, labels, k) == pytest.approx(expected, abs=1e-12)
    predicted = logits.argmax(dim=1)
    confusion = confusion_matrix(predicted, labels, 5)
    assert confusion.tolist() == metrics.confusion_matrix(labels.numpy(), predicted.numpy()).tolist()
    recall = metrics.recall_score(labels.numpy(), predicted.numpy(), average=None)
    assert per_class_accuracy(confusion).tolist() == pytest.approx(recall.tolist())
    jaccard = metrics.jaccard_score(labels.numpy(), predicted.numpy(), average="macro")
    assert mean_iou(confusion) == pytest.approx(jaccard)


def test_errors_against_a_count() -> None:
    logits, labels = drawn()
    for k in (1, 3):
        missed = sum(
            label not in sorted(range(5), key=lambda c, row=row: -row[c])[:k]
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        )
        assert top_k_error(logits, labels, k) == pytest.approx(missed / len(labels), abs=1e-12)
        assert 0 < missed < len(labels)


def test_confusions_of_batches_add_up_and_negative_labels_do_not_count() -> None:
    logits, labels = drawn()
    predicted = logits.argmax(dim=1)
    whole = confusion_matrix(predicted, labels, 5)
    assert torch.equal(
        whole, confusion_matrix(predicted[:70], labels[:70], 5) + confusion_matrix(predicted[70:], labels[70:], 5)
    )
    labels[::2] = -1
    assert torch.equal(confusion_matrix(predicted, labels, 5), confusion_matrix(predicted[1::2], labels[1::2], 5))


def test_iou_against_masks() -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, labels = (torch.randint(3, (2, 8, 8), generator=generator) for _ in range(2))
    expected = [
        ((predicted == c) & (labels == c)).sum().item() / ((predicted == c) | (labels == c)).sum().item()
        for c in range(3)
    ]
    # A fourth class that is nowhere is left out.
    assert mean_iou(confusion_matrix(predicted, labels, 4)) == pytest.approx(sum(expected) / 3)
    accuracy = per_class_accuracy(confusion_matrix(predicted, labels, 4))
    assert accuracy[3].isnan() and not accuracy[:3].isnan().any()


def random_boxes(generator: torch.Generator, n: int) -> Tensor:
    corner = torch.randint(0, 12, (n, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(1, 9, (n, 2), generator=generator)], dim=1).float()


def test_overlaps_of_boxes_are_counted_in_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = random_boxes(generator, 12), random_boxes(generator, 9)

    def pixels(box: Tensor) -> set[tuple[int, int]]:
        left, top, right, bottom = map(int, box.tolist())
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    expected = [[len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)) for b in second] for a in first]
    assert torch.allclose(box_iou(first, second), torch.tensor(expected))
    assert box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def brute_force(boxes: list[Tensor], scores: list[Tensor], truths: list[Tensor]) -> float:
    """For the t-th of T true boxes found, the best precision of any cut of the ranking that finds as many, averaged."""
    ranking = sorted(
        ((s, i, j) for i, values in enumerate(scores) for j, s in enumerate(values.tolist())), reverse=True
    )
    total = sum(map(len, truths))
    cuts = []
    for length in range(1, len(ranking) + 1):
        found: set[tuple[int, int]] = set()
        for _, i, j in ranking[:length]:
            overlaps = [box_iou(boxes[i][j : j + 1], true[None]).item() for true in truths[i]]
            if overlaps and max(overlaps) >= 0.5:
                found.add((i, overlaps.index(max(overlaps))))
        cuts.append((len(found), len(found) / length))
    return sum(max((p for n, p in cuts if n >= t), default=0.0) for t in range(1, total + 1)) / total


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_against_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, scores, truths = [], [], []
    for _ in range(6):
        true = random_boxes(generator, int(torch.randint(0, 4, (), generator=generator)))
        near = true + torch.randint(-1, 2, true.shape, generator=generator)
        found = torch.cat([near, true[:1], random_boxes(generator, 2)])  # some twice, some wrong
        boxes.append(found)
        truths.append(true)
        scores.append(torch.rand(len(found), generator=generator))
    expected = brute_force(boxes, scores, truths)
    assert 0 < expected < 1
    assert average_precision(boxes, scores, truths) == pytest.approx(expected, abs=1e-9)


def test_the_mean_over_classes_counts_those_that_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    truths = [random_boxes(generator, 4) for _ in range(5)]
    boxes = [torch.cat([true + torch.randint(-1, 2, (4, 1), generator=generator), true[:1]]) for true in truths]
    scores = [torch.rand(5, generator=generator) for _ in truths]
    true_labels = [torch.tensor([0, 0, 2, 2])] * 5
    labels = [torch.tensor([0, 0, 2, 3, 1])] * 5  # nothing is of class 1 or 3
    expected = [
        brute_force(
            [found[each == label] for found, each in zip(boxes, labels, strict=True)],
            [found[each == label] for found, each in zip(scores, labels, strict=True)],
            [true[each == label] for true, each in zip(truths, true_labels, strict=True)],
        )
        for label in (0, 2)
    ]
    assert 0 < expected[0] < expected[1] < 1
    actual = mean_average_precision(boxes, scores, labels, truths, true_labels)
    assert actual == pytest.approx(sum(expected) / 2, abs=1e-9)
    assert math.isnan(mean_average_precision([], [], [], [], []))


def test_average_precision_at_its_ends() -> None:
    box, none = torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(0, 4)
    score, nothing = torch.tensor([0.5]), torch.zeros(0)
    assert average_precision([box], [score], [box]) == 1
    assert average_precision([box], [score], [box + 3]) == 0
    assert average_precision([none], [nothing], [box]) == 0
    assert average_precision([box, none], [score, nothing], [box, box]) == 0.5
    assert math.isnan(average_precision([box], [score], [none]))
    half = torch.tensor([[0.0, 0, 4, 2]])
    assert (
        average_precision([half], [score], [box]) == 1 and average_precision([half], [score], [box], threshold=0.6) == 0
    )


def test_what_does_not_belong_together_is_refused() -> None:
    logits, labels = drawn()
    with pytest.raises(ValueError, match="k 6 is out of range: use 1 to 5"):
        top_k_error(logits, labels, 6)
    with pytest.raises(ValueError, match="are not"):
        top_k_error(logits, labels[1:])
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(labels, labels[1:], 5)
    with pytest.raises(ValueError, match="a labelled class is out of range: use 0 to 2"):
        confusion_matrix(labels % 3, labels, 3)
    with pytest.raises(ValueError, match="image 0 has 1 boxes and 2 scores"):
        average_precision([torch.zeros(1, 4)], [torch.zeros(2)], [torch.zeros(0, 4)])
    with pytest.raises(ValueError, match="not of the same images"):
        average_precision([], [], [torch.zeros(0, 4)])
