import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

from mlp_dist.core.image import normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ImageSpec, ModelSpec
from mlp_dist.data.evaluate import calibration, confident_mistakes, evaluate, predict

SPEC = ImageSpec(height=2, width=3, channels=1, mean=(0.3,), std=(0.4,))


def random_logits(number: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    logits = 3 * torch.randn(number, classes, generator=generator)
    return logits, torch.randint(classes, (number,), generator=generator)


@pytest.mark.parametrize(("number", "classes"), [(1, 2), (500, 2), (500, 10), (50, 100)])
def test_evaluation_equals_scikit_learn_s(number: int, classes: int) -> None:
    logits, labels = random_logits(number, classes)
    found = evaluate(logits, labels)
    names = list(range(classes))
    predicted = logits.argmax(dim=1).numpy()
    assert found.accuracy == accuracy_score(labels.numpy(), predicted)
    assert found.confusion.dtype == torch.int64
    assert np.array_equal(found.confusion.numpy(), confusion_matrix(labels.numpy(), predicted, labels=names))
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    assert found.loss == pytest.approx(log_loss(labels.numpy(), probabilities, labels=names), rel=1e-12)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels.numpy(), predicted, labels=names, zero_division=math.nan
    )
    for ours, theirs in (
        (found.class_precision, precision),
        (found.class_accuracy, recall),
        (found.class_f1, f1),
    ):
        expected = [None if math.isnan(value) else pytest.approx(value, rel=1e-12) for value in theirs]
        assert ours == expected


def test_evaluation_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [5.0, 1.0, 1.0], [1.0, 5.0, 1.0]])
    found = evaluate(logits, torch.tensor([0, 0, 2]))
    assert found.accuracy == 2 / 3
    assert found.confusion.tolist() == [[2, 0, 0], [0, 0, 0], [0, 1, 0]]
    wrong = math.log(2 * math.exp(1) + math.exp(5))
    assert found.loss == pytest.approx((math.log(2) + (wrong - 5) + (wrong - 1)) / 3, rel=1e-12)


def test_figures_of_classes_by_hand() -> None:
    """Of four classes the second has no images, the last neither images nor answers."""
    answers, labels = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 0, 0, 2, 0])
    found = evaluate(torch.eye(4)[answers], labels)
    assert found.class_accuracy == [2 / 4, None, 1, None]
    assert found.class_precision == [1, 0, 1 / 2, None]
    assert found.class_f1 == [2 * 2 / (4 + 2), 0, 2 * 1 / (1 + 2), None]


def of_two(*confidences: float) -> torch.Tensor:
    """Answer 1 with these probabilities, of two classes."""
    return torch.tensor([[1 - value, value] for value in confidences], dtype=torch.float64)


def test_calibration_by_hand() -> None:
    """In fifteen bins the fourteenth is (13/15, 14/15]."""
    bins = calibration(of_two(0.9, 0.92, 0.55, 1.0), torch.tensor([1, 0, 1, 1]))
    assert (bins.shape, bins.dtype) == ((15, 3), torch.float64)
    expected = {8: [1, 0.55, 1], 13: [2, 0.9 + 0.92, 1], 14: [1, 1, 1]}
    for number, row in enumerate(bins.tolist()):
        assert row == pytest.approx(expected.get(number, [0, 0, 0]))


def test_the_expected_calibration_error_by_hand() -> None:
    """The bins weigh by their images: 2 of 4 with a gap of |0.91 - 1/2|, one of |0.55 - 1|, one of 0."""
    logits = of_two(0.9, 0.92, 0.55, 1.0).log()
    found = evaluate(logits, torch.tensor([1, 0, 1, 1]))
    assert found.ece == pytest.approx((2 * 0.41 + 0.45 + 0) / 4)


@pytest.mark.parametrize("label", [0, 1])
def test_calibration_of_one_image_that_is_certain(label: int) -> None:
    found = evaluate(torch.tensor([[-math.inf, 0.0]]), torch.tensor([label]))
    assert found.calibration[14].tolist() == [1, 1, label]
    assert found.calibration[:14].sum() == 0
    assert found.ece == 1 - label


@pytest.mark.parametrize("bound", range(1, 15))
def test_a_bin_ends_with_its_upper_bound(bound: int) -> None:
    confidence = bound / 15
    just_above = math.nextafter(confidence, 1)
    rest = torch.zeros(2, 20, dtype=torch.float64)
    rest[:, 0] = torch.tensor([confidence, just_above], dtype=torch.float64)
    bins = calibration(rest, torch.tensor([0, 0]))
    assert bins[:, 0].nonzero().flatten().tolist() == [bound - 1, bound]


def test_answers_that_are_as_right_as_they_are_sure_have_no_error() -> None:
    logits = of_two(0.75, 0.75, 0.75, 0.75).log()
    assert evaluate(logits, torch.tensor([1, 0, 1, 1])).ece == pytest.approx(0, abs=1e-15)


def test_mistakes_are_the_most_confident_first() -> None:
    probabilities, labels = of_two(0.6, 0.9, 0.9, 0.99, 0.1), torch.tensor([0, 0, 0, 1, 1])
    assert confident_mistakes(probabilities, labels, 10).tolist() == [1, 2, 4, 0]
    assert confident_mistakes(probabilities, labels, 2).tolist() == [1, 2]
    assert confident_mistakes(probabilities, torch.tensor([1, 1, 1, 1, 0]), 2).tolist() == []


def test_loss_is_computed_in_float64() -> None:
    found = evaluate(torch.tensor([[0.0, 30.0]]), torch.tensor([1]))
    assert found.loss == pytest.approx(math.log1p(math.exp(-30)), rel=1e-2)
    assert found.loss > 0


@pytest.mark.parametrize("number", [1, 7, 2000, 2001, 4500])
def test_predict_equals_the_model_on_all_images(number: int) -> None:
    model = build_model(ModelSpec((6, 5, 4)), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (number, 1, 2, 3), dtype=torch.uint8, generator=generator)
    logits = predict(model, images, SPEC)
    assert logits.shape == (number, 4)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model(normalize(images, SPEC)).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, predict(model, images, SPEC))
