import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

from mlp_dist.data.scores import Array, calibration, confident_mistakes, evaluate, probabilities


@pytest.mark.parametrize(("number", "classes"), [(1, 2), (500, 10)])
def test_evaluation_equals_scikit_learn(number: int, classes: int) -> None:
    random = np.random.default_rng(number)
    logits = 3 * random.standard_normal((number, classes), np.float32)
    labels = random.integers(classes, size=number)
    found = evaluate(logits, labels)
    names = list(range(classes))
    predicted = logits.argmax(axis=1)
    assert found.accuracy == accuracy_score(labels, predicted)
    assert found.confusion.dtype == np.int64
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted, labels=names))
    shares = softmax(logits.astype(np.float64), axis=1)
    assert found.loss == pytest.approx(log_loss(labels, shares, labels=names), rel=1e-12)
    np.testing.assert_allclose(
        probabilities(logits, 2.0), softmax(logits.astype(np.float64) / 2, axis=1), rtol=1e-12
    )
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=names, zero_division=math.nan
    )
    for ours, theirs in (
        (found.class_precision, precision),
        (found.class_accuracy, recall),
        (found.class_f1, f1),
    ):
        expected = [None if math.isnan(value) else pytest.approx(value, rel=1e-12) for value in theirs]
        assert ours == expected


def of_two(*confidences: float) -> Array:
    """Probabilities of two classes; the second has these."""
    return np.array([[1 - value, value] for value in confidences])


def test_calibration_by_hand() -> None:
    """The fourteenth of fifteen bins is (13/15, 14/15]; bins weigh by their numbers of images."""
    shares, labels = of_two(0.9, 0.92, 0.55, 1 - 1e-16), np.array([1, 0, 1, 1])
    bins = calibration(shares, labels)
    assert (bins.shape, bins.dtype) == ((15, 3), np.float64)
    expected = {8: [1, 0.55, 1], 13: [2, 0.9 + 0.92, 1], 14: [1, 1, 1]}
    for number, row in enumerate(bins.tolist()):
        assert row == pytest.approx(expected.get(number, [0, 0, 0]))
    assert evaluate(np.log(shares), labels).ece == pytest.approx((2 * 0.41 + 0.45 + 0) / 4)
    assert evaluate(np.log(of_two(0.75, 0.75, 0.75, 0.75)), labels).ece == pytest.approx(0, abs=1e-15)


def test_most_confident_mistakes_come_first() -> None:
    """Two ties, which keep their order, and one image with equal probabilities."""
    shares, labels = of_two(0.75, 0.5, 1.0, 0.75, 0.625, 1.0), np.array([0, 1, 0, 0, 0, 1])
    assert confident_mistakes(shares, labels, 10).tolist() == [2, 0, 3, 4, 1]
    assert confident_mistakes(shares, labels, 2).tolist() == [2, 0]
