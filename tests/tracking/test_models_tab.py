"""The weights that runs keep, as LoggedModels."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.tracking.models import FIGURES, find_model, log_model
from mlp_dist.tracking.store import load_mlflow

pytestmark = pytest.mark.slow

EPOCH = {"train/loss": 0.5, "throughput/steps_taken": 9.0, "val/loss": 0.25, "val/accuracy": 0.75}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The client of a store in a directory of its own."""
    directory = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield load_mlflow().MlflowClient(f"sqlite:///{directory}/mlflow.db")


@pytest.fixture
def experiment(client: Any, request: pytest.FixtureRequest) -> str:
    return str(client.create_experiment(request.node.name))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/weights.pt").write_bytes(b"weights")
    return tmp_path / "bundle"


def new_run(client: Any, experiment: str, epochs: int = 2, accuracy: float = 0.75) -> str:
    """A run with epochs of the same figures, an hour apart from 1970 on."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, Metric, Param

    run_id = str(client.create_run(experiment).info.run_id)
    epoch = {**EPOCH, "val/accuracy": accuracy}
    points = [
        Metric(name, epoch[name], step * 3600_000, step) for name in epoch for step in range(1, epochs + 1)
    ]
    client.log_batch(run_id, points, [Param("lr", "0.1"), Param("output_dir", "/here")])
    data = MetaDataset(CodeDatasetSource({}), name="mnist", digest="abc")
    client.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity())])
    return run_id


def log(client: Any, run_id: str, bundle: Path, name: str = "best", epoch: int = 1, **changed: float) -> str:
    from mlflow.entities import Metric

    figures = {**EPOCH, **{name.replace("_", "/"): value for name, value in changed.items()}}
    points = [Metric(name, value, epoch * 3600_000, epoch) for name, value in figures.items()]
    return log_model(client, run_id, name, bundle, epoch=epoch, points=points)


def points(client: Any, run_id: str) -> set[tuple[str, int, int, float]]:
    return {
        (point.key, point.step, point.timestamp, point.value)
        for name in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, name)
    }


def test_a_model_has_its_epoch_s_points_and_the_run_none_twice(
    client: Any, experiment: str, bundle: Path, tmp_path: Path
) -> None:
    run_id = new_run(client, experiment)
    before = points(client, run_id)
    first = [log(client, run_id, bundle), log(client, run_id, bundle, "last", 2)]
    assert [log(client, run_id, bundle), log(client, run_id, bundle, "last", 2)] == first
    assert points(client, run_id) == before
    assert len(client.get_metric_history(run_id, "val/loss")) == 2
    best, last = (client.get_logged_model(model_id) for model_id in first)
    assert {(point.key, point.value, point.timestamp, point.step) for point in best.metrics} == {
        (name, value, 3600_000, 1) for name, value in EPOCH.items() if name in FIGURES
    }
    assert [point.key for point in best.metrics] == ["val/accuracy", "val/loss", "train/loss"]
    assert {(point.dataset_name, point.dataset_digest) for point in best.metrics} == {("mnist", "abc")}
    assert (best.name, best.model_type, str(best.status)) == ("best", "pytorch_state_dict", "READY")
    assert (best.params, last.params) == ({"lr": "0.1", "epoch": "1"}, {"lr": "0.1", "epoch": "2"})
    outputs = client.get_run(run_id).outputs.model_outputs
    assert {(output.model_id, output.step) for output in outputs} == set(zip(first, (1, 2), strict=True))
    assert [Path(file.path).name for file in client.list_logged_model_artifacts(first[0])] == ["weights.pt"]


def test_a_crash_half_way_is_completed(client: Any, experiment: str, bundle: Path, tmp_path: Path) -> None:
    run_id = new_run(client, experiment)
    # No file can be stored in a directory that is a file.
    location = Path(client.get_experiment(experiment).artifact_location)
    location.mkdir(parents=True)
    (location / "models").touch()
    with pytest.raises(OSError, match="models"):
        log(client, run_id, bundle)
    [begun] = client.search_logged_models([experiment])
    assert str(begun.status) == "PENDING"
    (location / "models").unlink()
    assert log(client, run_id, bundle) == begun.model_id
    [model] = client.search_logged_models([experiment])
    assert (str(model.status), len(model.metrics)) == ("READY", 3)


def test_a_run_that_went_on_has_another_best_and_keeps_the_one_before(
    client: Any, experiment: str, bundle: Path
) -> None:
    run_id = new_run(client, experiment, epochs=12)
    models = [log(client, run_id, bundle, epoch=epoch) for epoch in (12, 9)]
    assert {model.model_id for model in client.search_logged_models([experiment])} == set(models)
    assert find_model(client, client.get_run(run_id), "best", 9).model_id == models[1]
    assert find_model(client, client.get_run(run_id), "best", 10) is None


def test_models_are_ranked_by_a_metric_with_a_slash(client: Any, experiment: str, bundle: Path) -> None:
    for accuracy in (0.5, 0.9, 0.7):
        run_id = new_run(client, experiment, accuracy=accuracy)
        log(client, run_id, bundle, val_accuracy=accuracy, val_loss=math.nan)
    order = [{"field_name": "metrics.val/accuracy", "ascending": False}]
    ranked = client.search_logged_models([experiment], "metrics.val/accuracy > 0.6", order_by=order)
    accuracies = [{point.key: point.value for point in model.metrics}["val/accuracy"] for model in ranked]
    assert accuracies == [0.9, 0.7]
    # NaN, stored as 0, would be the smallest loss.
    assert all("val/loss" not in [point.key for point in model.metrics] for model in ranked)
