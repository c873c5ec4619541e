import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlp_dist.core.bundle import load_bundle, load_file, recalibrate, save_file
from mlp_dist.core.errors import BundleError
from mlp_dist.core.image import encode_png
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ImageSpec, ModelSpec
from mlp_dist.data.batches import split_validation
from mlp_dist.data.calibration import COLDEST, HOTTEST, fit_temperature, model_temperature
from mlp_dist.data.evaluate import calibration, evaluate, predict
from mlp_dist.data.image_set import Dataset, ImageSet
from mlp_dist.data.stored import StoredArray, StoredSet
from mlp_dist.tracking import find
from mlp_dist.tracking.export import export_run, run_dataset
from tests.helpers.launching import Trained
from tests.helpers.stored_runs import digits_run


def honest(number: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is how often each label was drawn."""
    generator = torch.Generator().manual_seed(number)
    logits = 3 * torch.randn(number, classes, generator=generator)
    return logits, torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_logits_that_were_scaled_are_brought_back(factor: float, classes: int) -> None:
    logits, labels = honest(20_000, classes)
    found = fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.03)
    assert found == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-6)
    assert evaluate(logits * factor, labels, temperature=found).ece < 0.01
    if factor != 1:
        assert evaluate(logits * factor, labels).ece > 0.05


def test_no_other_temperature_fits_better() -> None:
    logits, labels = honest(5000, 10)
    found = fit_temperature(2 * logits, labels)
    least, below, above = (
        evaluate(2 * logits / (found * factor), labels).loss for factor in (1, 1 / 1.02, 1.02)
    )
    assert least < min(below, above)


@pytest.mark.parametrize("logits", [torch.zeros(0, 3), torch.zeros(5, 3), torch.full((4, 1), 2.0)])
def test_where_nothing_tells_of_it_the_temperature_is_1(logits: torch.Tensor) -> None:
    assert fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64)) == 1


def test_all_right_and_all_wrong() -> None:
    """Thirty right answers make none much surer than 30 of 31."""
    logits, _ = honest(30, 10)
    found = fit_temperature(logits, logits.argmax(dim=1))
    confidence = torch.softmax(logits / found, dim=1).amax(dim=1).mean().item()
    assert 0.7 < confidence < 30 / 31
    assert fit_temperature(1e-3 * logits, logits.argmax(dim=1)) == pytest.approx(COLDEST)
    assert fit_temperature(logits, logits.argmin(dim=1)) == pytest.approx(HOTTEST)
    one = torch.tensor([[0.0, 4.0]])
    assert fit_temperature(one, torch.tensor([1])) == pytest.approx(4 / math.log(3))


@pytest.mark.slow
def test_a_training_s_answers_are_as_often_right_as_they_are_sure(
    trained: Trained, image_data: Dataset
) -> None:
    result, bundle = trained.result, load_bundle(trained.bundle)
    test = evaluate(
        predict(bundle.model, image_data.test, bundle.spec.image),
        image_data.test.labels,
        temperature=bundle.spec.temperature,
    )
    assert bundle.spec.temperature == result["temperature"] != 1
    assert test.ece == pytest.approx(result["test_ece"], abs=1e-6)
    assert test.uncalibrated_ece == pytest.approx(result["test_ece_uncalibrated"], abs=1e-6)
    answered = calibration(bundle.probabilities(image_data.test.images), image_data.test.labels)
    torch.testing.assert_close(answered, test.calibration)
    assert result["test_ece"] <= 0.01 or result["dataset"] != "mnist"


@pytest.mark.slow
def test_every_way_to_ask_gives_the_calibrated_answer(
    trained: Trained, image_data: Dataset, tmp_path: Path
) -> None:
    bundle = load_bundle(trained.bundle)
    hot = replace(bundle, spec=replace(bundle.spec, temperature=3.0))
    images = image_data.test.images[:5]
    expected = torch.softmax(predict(bundle.model, images, bundle.spec.image).double() / 3, dim=1)
    save_file(hot, tmp_path / "hot.pt")
    loaded = load_file(tmp_path / "hot.pt")
    for asked in (hot, loaded):
        answers = (
            asked.probabilities(images).tolist(),
            [list(answer.values()) for answer in asked.predict_proba(images)],
            [list(asked.answer(encode_png(image)).values()) for image in images],
        )
        for found in answers:
            torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=0, atol=1e-6)
    with pytest.raises(BundleError, match="the trained model gave"):
        hot.check_golden()
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    recalibrate(tmp_path / "bundle", bundle, 3.0).check_golden()
    found = load_bundle(tmp_path / "bundle")
    found.check_golden()
    assert found.spec == replace(loaded.spec, golden_probabilities=found.spec.golden_probabilities)


@pytest.mark.slow
def test_a_run_from_before_temperatures_gets_one_when_it_is_exported(mlflow: Any, tmp_path: Path) -> None:
    run = find.get_run(digits_run("x", "old", noise=0, val_accuracy=0.9, val_size=200))
    [stored] = tmp_path.glob("mlruns/*/*/artifacts/bundle/bundle.json")
    values = json.loads(stored.read_text())
    stored.write_text(json.dumps({name: value for name, value in values.items() if name != "temperature"}))
    exported, data = export_run(run, tmp_path / "once"), run_dataset(run)
    _, held_out = split_validation(data.train, 200)
    model, image = exported.bundle.model, exported.bundle.spec.image
    expected = fit_temperature(predict(model, held_out, image), held_out.labels)
    assert exported.bundle.spec.temperature == exported.test.temperature == expected
    assert exported.test.ece < 0.1 < exported.test.uncalibrated_ece
    found = load_bundle(exported.directory)
    found.check_golden()
    assert found.spec == exported.bundle.spec
    assert export_run(run, tmp_path / "again").bundle.spec == found.spec
    unheld = find.get_run(digits_run("x", "all", noise=0, val_accuracy=0.9, val_size=0))
    assert export_run(unheld, tmp_path / "all").bundle.spec.temperature == 1


def test_a_set_on_disk_gives_the_temperature_of_the_same_set_in_memory(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 1, 2, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (50,), generator=generator)
    np.save(tmp_path / "images.npy", images.numpy())
    np.save(tmp_path / "labels.npy", labels.numpy())
    stored = StoredSet(StoredArray(tmp_path / "images.npy"), StoredArray(tmp_path / "labels.npy"))
    spec = ImageSpec(height=2, width=3, channels=1, mean=(0.3,), std=(0.4,))
    model = build_model(ModelSpec((6, 5, 4)), generator=generator)
    expected = model_temperature(model, ImageSet(images, labels), spec)
    assert model_temperature(model, stored, spec) == expected != 1
    assert model_temperature(model, stored[:0], spec) == 1
