import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from mlp_dist.core.images import normalize
from mlp_dist.core.models import build_model
from mlp_dist.core.spec import ImageSpec, ModelSpec
from mlp_dist.evaluation import evaluate, predict

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


def test_evaluation_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [5.0, 1.0, 1.0], [1.0, 5.0, 1.0]])
    found = evaluate(logits, torch.tensor([0, 0, 2]))
    assert found.accuracy == 2 / 3
    assert found.confusion.tolist() == [[2, 0, 0], [0, 0, 0], [0, 1, 0]]
    wrong = math.log(2 * math.exp(1) + math.exp(5))
    assert found.loss == pytest.approx((math.log(2) + (wrong - 5) + (wrong - 1)) / 3, rel=1e-12)


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
