"""A training's run in MLflow, and the choice of the best run."""

import math
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.tracking import find
from tests.helpers.comparing import check_all_is_there
from tests.helpers.launching import Trained
from tests.helpers.stored_runs import end_run, start_run

pytestmark = pytest.mark.slow


@pytest.fixture
def stored(trained: Trained, mlflow: Any) -> Any:
    """The client of the shared training's store."""
    mlflow.set_tracking_uri(f"sqlite:///{trained.directory}/mlflow.db")
    return mlflow.MlflowClient()


def add_run(experiment: str, dataset: str = "mnist", status: str = "FINISHED", **metrics: float) -> str:
    return end_run(start_run(experiment, "a run", {"dataset": dataset}), status, best_epoch=1, **metrics)


def test_training_is_complete_in_mlflow(trained: Trained, stored: Any) -> None:
    values = trained.result
    check_all_is_there(stored, values["run_id"], Path(values["output_dir"]))
    run = stored.get_run(values["run_id"])
    expected = {"dataset": values["dataset"], "recipe": "mnist-quick", "lr": "0.1", "seed": "0"}
    expected |= {"hidden_sizes": "500", "num_parameters": str(values["num_parameters"])}
    assert expected.items() <= run.data.params.items()
    for name in ("test_accuracy", "test_loss", "test_ece"):
        assert run.data.metrics[name] == values[name]
    assert run.data.metrics["best_val_accuracy"] == values["val_accuracy"]
    assert run.info.run_name == "seed=0 · mnist-quick on digits"
    tags = run.data.tags
    expected = {"host": socket.gethostname(), "num_processes": "1", "torch": version("torch")}
    assert expected.items() <= tags.items()
    assert values["output_dir"] in tags["mlflow.note.content"]
    [dataset] = [each.dataset for each in run.inputs.dataset_inputs]
    assert (dataset.name, len(dataset.digest)) == (values["dataset"], 32)


def test_kept_weights_are_a_ranked_model(trained: Trained, stored: Any, tmp_path: Path) -> None:
    run = stored.get_run(trained.result["run_id"])
    order = [{"field_name": "metrics.best_val_accuracy", "ascending": False}]
    found = stored.search_logged_models([run.info.experiment_id], order_by=order)
    assert (len(found), found[0].source_run_id) == (1, run.info.run_id)
    assert found[0].name.replace("·", ".") == run.info.run_name.replace("·", ".")
    values = {point.key: (point.step, point.value) for point in found[0].metrics}
    assert values["val/accuracy"] == (trained.result["best_epoch"], trained.result["val_accuracy"])
    assert values["test_accuracy"][1] == trained.result["test_accuracy"]
    bundle = load_bundle(find.download_bundle(find.find_run(run.info.run_id), tmp_path))
    assert bundle.spec.run_id == run.info.run_id
    last = torch.load(Path(trained.result["output_dir"]) / "last.pt", weights_only=True)
    weights = bundle.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in last["best"].items())


def test_best_run_is_chosen_by_validation(mlflow: Any) -> None:
    add_run("x", best_val_accuracy=0.90, test_accuracy=0.99, best_val_loss=0.1)
    best = add_run("x", best_val_accuracy=0.95, test_accuracy=0.80, best_val_loss=0.3)
    add_run("x", test_accuracy=1.0)
    add_run("x", best_val_accuracy=math.nan)
    add_run("other", best_val_accuracy=1.0)
    add_run("x", status="FAILED", best_val_accuracy=0.99)
    assert find.best_run("x").run_id == best
    assert find.best_run("x", "val_loss").metrics["best_val_loss"] == 0.1
    same = add_run("x", best_val_accuracy=0.95)
    assert find.best_run("x").run_id == same


def test_only_runs_on_the_latest_data_set_compete(mlflow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = add_run("x", best_val_accuracy=0.98)
    add_run("x", best_val_accuracy=0.97)
    assert find.best_run("x").run_id == first
    assert capsys.readouterr().out == ""
    best = add_run("x", "folder:/pets", best_val_accuracy=0.6)
    add_run("x", "folder:/pets", best_val_accuracy=0.5)
    assert find.best_run("x").run_id == best
    out = capsys.readouterr().out
    assert "only runs on folder:/pets, the latest run's data set, are compared, not those on mnist" in out


def test_without_validation_the_latest_run_is_best(mlflow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    add_run("x", test_accuracy=0.9)
    latest = add_run("x", test_accuracy=0.8)
    assert find.best_run("x").run_id == latest
    assert "note: no run on mnist has validation images to choose by" in capsys.readouterr().out
    rated = add_run("x", best_val_accuracy=0.1)
    add_run("x", test_accuracy=0.99)
    assert find.best_run("x").run_id == rated


def test_rejected_choices(mlflow: Any) -> None:
    with pytest.raises(UsageError, match=r"cannot be chosen by 'test_accuracy'; there are: val_acc"):
        find.best_run("x", "test_accuracy")
    with pytest.raises(UsageError, match=r"has no experiment 'x' \(there are: Default\)"):
        find.best_run("x")
    with pytest.raises(UsageError, match="has no run 'nope'"):
        find.find_run("nope")
    run_id = add_run("x", status="FAILED")
    with pytest.raises(TrackingError, match=r"the experiment 'x' has no finished run; train one"):
        find.best_run("x")
    with pytest.raises(TrackingError, match=rf"run {run_id} \(a run\) is FAILED and has no model"):
        find.find_run(run_id)
    empty = find.find_run(add_run("x"))
    with pytest.raises(TrackingError, match="has no bundle to download: MLflow has no model of it; if you"):
        find.download_bundle(empty, Path("there"))
