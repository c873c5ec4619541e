"""Loading a trained model from wherever it is."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist import load_model, save_model
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import BundleError, TrackingError, UsageError
from mlp_dist.core.image import encode_png
from mlp_dist.data.image_set import Dataset
from tests.helpers.launching import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def mlflow(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mlflow on the store that the training wrote."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{trained.directory}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("source", ["best", "run id", "bundle", "output directory", "file"])
def test_sources(source: str, trained: Trained, tmp_path: Path) -> None:
    expected = load_bundle(trained.bundle)
    save_model(expected, tmp_path / "model.pt")
    model = load_model(
        {
            "best": "best",
            "run id": trained.result["run_id"],
            "bundle": trained.bundle,
            "output directory": str(trained.bundle.parent),
            "file": str(tmp_path / "model.pt"),
        }[source]
    )
    golden = model.spec.golden_probabilities
    assert golden == pytest.approx(expected.spec.golden_probabilities, abs=1e-6)
    assert model.spec == replace(expected.spec, golden_probabilities=golden)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor)


def test_best_is_the_default_and_is_right_about_digits(image_data: Dataset, tmp_path: Path) -> None:
    model = load_model()
    test = image_data.test[:200]
    labels = [image_data.classes[label] for label in test.labels.tolist()]
    answers = model.predict(test.images)
    assert sum(answer == label for answer, label in zip(answers, labels, strict=True)) > 170
    (tmp_path / "digit.png").write_bytes(encode_png(test.images[0]))
    [probabilities] = model.predict_proba("digit.png")
    assert max(probabilities, key=probabilities.__getitem__) == model.predict(tmp_path / "digit.png")[0]
    assert list(probabilities) == list(image_data.classes)


@pytest.mark.parametrize("source", ["nope", "nope/there", Path("nope")], ids=str)
def test_what_is_no_model(source: str | Path, tmp_path: Path) -> None:
    message = "has no run 'nope'" if source == "nope" else f"there is no model at {source}; give a bundle's"
    with pytest.raises(UsageError, match=message):
        load_model(source)
    (tmp_path / "nope").mkdir()
    with pytest.raises(UsageError, match="there is no model at"):
        load_model(source)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"something")
    with pytest.raises(BundleError, match=r"model\.pt cannot be read"):
        load_model("model.pt")


def test_a_directory_of_that_name_is_not_in_best_s_way(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    assert load_model("best").spec.run_id == trained.result["run_id"]


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there(device: str, trained: Trained) -> None:
    with pytest.raises(UsageError, match=f"the device '{device}' cannot be used: .*; 'cpu' always can"):
        load_model(trained.bundle, device=device)


def test_a_bundle_that_answers_otherwise(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    (tmp_path / "bundle/golden.png").write_bytes(encode_png(torch.zeros(1, 28, 28, dtype=torch.uint8)))
    with pytest.raises(BundleError, match="the golden image's class"):
        load_model(tmp_path / "bundle")


def test_a_store_that_cannot_be_asked(mlflow: Any, tmp_path: Path) -> None:
    (tmp_path / "damaged.db").write_text("not a database")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/damaged.db")
    for source in ("best", "abc"):
        with pytest.raises(TrackingError, match=r"MLflow at .*damaged.db cannot be asked: .*; see MLFLOW_TR"):
            load_model(source)


def test_an_experiment_of_ones_own() -> None:
    with pytest.raises(UsageError, match="has no experiment 'mine'"):
        load_model(experiment="mine")
    with pytest.raises(TrackingError, match="the experiment 'Default' has no finished run"):
        load_model(experiment="Default")
    with pytest.raises(UsageError, match="a run cannot be chosen by 'test_accuracy'"):
        load_model(metric="test_accuracy")
