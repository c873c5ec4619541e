"""LoggedModels of the weights that runs keep."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.tracking.models import FIGURES, find_model, log_model
from mlp_dist.tracking.store import load_mlflow

pytestmark = pytest.mark.slow

EPOCH = {"train/loss": 0.5, "throughput/steps_taken": 9.0, "val/loss": 0.25, "val/accuracy": 0.75}
HOUR_MS = 3600_000


@pytest.fixture(scope="module")
def client(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The client of a store of its own."""
    directory = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, directory)
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


def new_run(client: Any, experiment: str) -> str:
    """A run with two epochs of equal metrics, an hour apart."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, Metric, Param

    run_id = str(client.create_run(experiment).info.run_id)
    points = [Metric(name, value, step * HOUR_MS, step) for name, value in EPOCH.items() for step in (1, 2)]
    client.log_batch(run_id, points, [Param("lr", "0.1"), Param("output_dir", "/here")])
    data = MetaDataset(CodeDatasetSource({}), name="mnist", digest="abc")
    client.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity())])
    return run_id


def log(client: Any, run_id: str, bundle: Path, name: str = "best", epoch: int = 1, **changed: float) -> str:
    from mlflow.entities import Metric

    figures = {**EPOCH, **{name.replace("_", "/"): value for name, value in changed.items()}}
    points = [Metric(name, value, epoch * HOUR_MS, epoch) for name, value in figures.items()]
    return log_model(client, run_id, name, bundle, epoch=epoch, points=points)


def test_model_has_its_epochs_metrics(client: Any, experiment: str, bundle: Path) -> None:
    run_id = new_run(client, experiment)
    # MLflow would store NaN as 0, the smallest loss.
    first = [log(client, run_id, bundle, test_loss=math.nan), log(client, run_id, bundle, "last", 2)]
    assert [log(client, run_id, bundle), log(client, run_id, bundle, "last", 2)] == first
    best, last = (client.get_logged_model(model_id) for model_id in first)
    assert {(point.key, point.value, point.timestamp, point.step) for point in best.metrics} == {
        (name, value, HOUR_MS, 1) for name, value in EPOCH.items() if name in FIGURES
    }
    assert {(point.dataset_name, point.dataset_digest) for point in best.metrics} == {("mnist", "abc")}
    assert (best.name, best.model_type, str(best.status)) == ("best", "pytorch_state_dict", "READY")
    assert (best.params, last.params) == ({"lr": "0.1", "epoch": "1"}, {"lr": "0.1", "epoch": "2"})
    outputs = client.get_run(run_id).outputs.model_outputs
    assert {(output.model_id, output.step) for output in outputs} == set(zip(first, (1, 2), strict=True))
    # A resumed run has another best epoch and keeps the earlier model.
    newer = log(client, run_id, bundle, epoch=2)
    run = client.get_run(run_id)
    assert [find_model(client, run, "best", epoch).model_id for epoch in (1, 2)] == [first[0], newer]
    assert find_model(client, run, "best", 3) is None


def test_interrupted_model_is_completed(client: Any, experiment: str, bundle: Path) -> None:
    run_id = new_run(client, experiment)
    # A file in place of the directory makes the upload fail.
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
