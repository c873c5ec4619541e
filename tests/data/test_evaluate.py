import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlp_dist.core.bundle import load_bundle, load_file, save_file
from mlp_dist.core.errors import BundleError
from mlp_dist.core.image import encode_png
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.batches import generator
from mlp_dist.data.evaluate import COLDEST, HOTTEST, fit_temperature, predict
from mlp_dist.data.scores import evaluate
from tests.helpers.launching import Trained

SPEC = ImageSpec(height=2, width=3, channels=1, mean=(0.3,), std=(0.4,))


# Temperature


def calibrated(number: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn with the probabilities of their softmax."""
    logits = 3 * torch.randn(number, classes, generator=generator(number))
    return logits, torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator(1)).squeeze(1)


@pytest.mark.parametrize(("factor", "classes"), [(0.2, 10), (3.0, 2)])
def test_temperature_undoes_a_scaling(factor: float, classes: int) -> None:
    logits, labels = calibrated(10_000, classes)
    found = fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.05)
    fitted = evaluate((logits * factor).numpy(), labels.numpy(), temperature=found)
    assert fitted.ece < 0.02 < 0.05 < fitted.uncalibrated_ece


@pytest.mark.parametrize("logits", [torch.zeros(0, 3), torch.zeros(5, 3)])
def test_temperature_is_1_without_information(logits: torch.Tensor) -> None:
    assert fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64)) == 1


def test_temperature_of_perfect_and_wrong_predictions() -> None:
    logits, _ = calibrated(30, 10)
    found = fit_temperature(logits, logits.argmax(dim=1))
    # 30 correct predictions justify a confidence of 30 / 31.
    confidence = torch.softmax(logits / found, dim=1).amax(dim=1).mean().item()
    assert 0.7 < confidence < 30 / 31
    assert fit_temperature(1e-3 * logits, logits.argmax(dim=1)) == pytest.approx(COLDEST)
    assert fit_temperature(logits, logits.argmin(dim=1)) == pytest.approx(HOTTEST)
    assert fit_temperature(torch.tensor([[0.0, 4.0]]), torch.tensor([1])) == pytest.approx(4 / math.log(3))


@pytest.mark.slow
def test_every_way_to_predict_is_calibrated(trained: Trained, image_data: Dataset, tmp_path: Path) -> None:
    bundle, test_set = load_bundle(trained.bundle), image_data.test
    test = evaluate(
        predict(bundle.model, test_set.images, bundle.spec.image).numpy(),
        test_set.labels.numpy(),
        temperature=bundle.spec.temperature,
    )
    assert bundle.spec.temperature == trained.result["temperature"] != 1
    assert test.ece == pytest.approx(trained.result["test_ece"], abs=1e-6)
    assert test.uncalibrated_ece == pytest.approx(trained.result["test_ece_uncalibrated"], abs=1e-6)
    hot = replace(bundle, spec=replace(bundle.spec, temperature=3.0))
    images = test_set.images[:5]
    expected = torch.softmax(predict(bundle.model, images, bundle.spec.image).double() / 3, dim=1)
    save_file(hot, tmp_path / "hot.pt")
    loaded = load_file(tmp_path / "hot.pt")
    answers = (
        loaded.probabilities(images).tolist(),
        [list(answer.values()) for answer in hot.predict_proba(images)],
        [list(hot.answer(encode_png(image)).values()) for image in images],
    )
    for found in answers:
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=0, atol=1e-6)
    with pytest.raises(BundleError):
        hot.check_golden()
