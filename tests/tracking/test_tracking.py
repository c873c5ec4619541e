import contextlib
import json
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
from mlp_dist.training.identity import git_state
from tests.helpers.launching import ROOT, Trained

pytestmark = pytest.mark.slow


@pytest.fixture
def stored(trained: Trained, mlflow: Any) -> Any:
    """The client of the store that a real training wrote."""
    mlflow.set_tracking_uri(f"sqlite:///{trained.directory}/mlflow.db")
    return mlflow.MlflowClient()


def finished(mlflow: Any, experiment: str, dataset: str = "mnist", **metrics: float) -> str:
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run:
        mlflow.log_params({"dataset": dataset})
        mlflow.log_metrics({"best_epoch": 1, **metrics})
    return str(run.info.run_id)


def failed(mlflow: Any, experiment: str, **metrics: float) -> str:
    mlflow.set_experiment(experiment)
    with contextlib.suppress(RuntimeError), mlflow.start_run() as run:
        mlflow.log_metrics({"best_epoch": 1, **metrics})
        raise RuntimeError
    return str(run.info.run_id)


def test_a_training_is_in_mlflow_whole(trained: Trained, stored: Any) -> None:
    run = stored.get_run(trained.result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["dataset"] == trained.result["dataset"]
    assert run.data.params["layer_sizes"] == "784-500-10"
    assert run.data.params["model"] == "module"
    assert run.data.params["lr"] == "0.1"
    assert run.data.params["seed"] == "0"
    assert run.data.metrics["best_val_accuracy"] == trained.result["val_accuracy"]
    assert run.data.metrics["test_accuracy"] == trained.result["test_accuracy"]
    assert run.data.params["kept"] == "best validation accuracy"
    records = [
        json.loads(line)
        for line in (Path(trained.result["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    ]
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"):
        points = stored.get_metric_history(run.info.run_id, name.replace("_", "/"))
        assert [point.step for point in points] == list(range(1, trained.result["epochs"] + 1))
        assert [point.value for point in points] == [record[name] for record in records]
    [dataset] = {(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs}
    assert dataset[0] == trained.result["dataset"]
    assert len(dataset[1]) == 32


def test_a_run_says_what_it_is(trained: Trained, stored: Any) -> None:
    run, values = stored.get_run(trained.result["run_id"]), trained.result
    recipe = run.data.params["recipe"]
    assert run.info.run_name.startswith(f"{recipe} ")
    assert run.info.run_name.endswith("seed=0")
    commit, _ = git_state(ROOT)
    tags = run.data.tags
    expected = {"host": socket.gethostname(), "num_processes": "1", "torch": version("torch")}
    if commit:
        expected |= {"mlflow.source.git.commit": commit}
    assert expected.items() <= tags.items()
    assert tags.get("git.dirty", "false") in ("true", "false")
    assert tags["device"]
    assert "accelerate launch launch/train.py" in tags["mlflow.note.content"]
    assert values["output_dir"] in tags["mlflow.note.content"]
    profile = json.loads(run.inputs.dataset_inputs[0].dataset.profile)
    params = {name: int(run.data.params[name]) for name in ("num_train", "num_val", "num_test")}
    assert profile == {
        "num_train": params["num_train"] + params["num_val"],
        "num_test": params["num_test"],
    }
    images = stored.get_metric_history(run.info.run_id, "throughput/images_seen")
    steps = stored.get_metric_history(run.info.run_id, "throughput/steps_taken")
    assert [point.value for point in images] == [params["num_train"] * point.step for point in images]
    assert steps[0].value == math.ceil(params["num_train"] / 100)
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_its_summary_by_class_and_calibration(trained: Trained, stored: Any, tmp_path: Path) -> None:
    run_id = trained.result["run_id"]
    metrics = stored.get_run(run_id).data.metrics
    for name in (
        *("test_accuracy", "test_loss", "test_ece", "test_ece_uncalibrated", "temperature", "best_epoch"),
    ):
        assert metrics[name] == trained.result[name]
    table = json.loads(Path(stored.download_artifacts(run_id, "tables/per_class.json", tmp_path)).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 10
    for row in rows:
        assert metrics[f"test_class_accuracy/{row['class']}"] == pytest.approx(row["accuracy"], abs=1e-4)
    right = sum(metrics[f"test_class_accuracy/{row['class']}"] * row["images"] for row in rows)
    assert right / sum(row["images"] for row in rows) == pytest.approx(metrics["test_accuracy"])
    tables = json.loads(stored.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert {each["path"] for each in tables} == {"tables/per_class.json", "tables/mistakes.json"}


def test_its_kept_weights_are_ranked_as_models(trained: Trained, stored: Any, tmp_path: Path) -> None:
    run = stored.get_run(trained.result["run_id"])
    order = [{"field_name": "metrics.val/accuracy", "ascending": False}]
    found = stored.search_logged_models([run.info.experiment_id], order_by=order)
    assert found[0].name == "best"
    assert found[0].source_run_id == run.info.run_id
    values = {point.key: (point.step, point.value) for point in found[0].metrics}
    assert values["val/accuracy"] == (trained.result["best_epoch"], trained.result["val_accuracy"])
    loaded = load_bundle(Path(stored.download_artifacts(run.info.run_id, "bundle", tmp_path)))
    assert loaded.spec.run_id == run.info.run_id


def test_its_artifacts(trained: Trained, stored: Any, tmp_path: Path) -> None:
    run_id = trained.result["run_id"]
    names = {
        item.path
        for folder in ("", "bundle", "checkpoint", "figures")
        for item in stored.list_artifacts(run_id, folder)
    }
    assert names >= {
        *("config.json", "bundle/weights.pt", "bundle/bundle.json", "bundle/golden.png"),
        *("checkpoint/best", "checkpoint/last"),
        *(
            f"figures/{name}.png"
            for name in (
                *("samples", "learning_curves", "confusion_matrix"),
                *("predictions", "mistakes", "first_layer", "reliability", "class_accuracy"),
            )
        ),
    }
    config = json.loads(Path(stored.download_artifacts(run_id, "config.json", tmp_path)).read_text())
    assert (config["recipe"], config["batch_size"], config["val_size"]) == ("mnist", 100, config["val_size"])
    last = torch.load(Path(trained.result["output_dir"]) / "last.pt", weights_only=True)
    for which, expected in (("best", last["best"]), ("last", last["model"])):
        path = Path(stored.download_artifacts(run_id, f"checkpoint/{which}", tmp_path)) / "state_dict.pth"
        found = torch.load(path, weights_only=True)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_best_run_is_chosen_by_validation_never_by_test(mlflow: Any) -> None:
    finished(mlflow, "x", best_val_accuracy=0.90, test_accuracy=0.99, best_val_loss=0.1)
    best = finished(mlflow, "x", best_val_accuracy=0.95, test_accuracy=0.80, best_val_loss=0.3)
    finished(mlflow, "x", test_accuracy=1.0)
    finished(mlflow, "x", best_val_accuracy=math.nan)
    finished(mlflow, "other", best_val_accuracy=1.0)
    failed(mlflow, "x", best_val_accuracy=0.99)
    assert find.best_run("x").run_id == best
    assert find.best_run("x", "val_loss").metrics["best_val_loss"] == 0.1
    same = finished(mlflow, "x", best_val_accuracy=0.95)
    assert find.best_run("x").run_id == same


def test_only_runs_on_the_latest_s_data_set_compare(mlflow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = finished(mlflow, "x", "mnist", best_val_accuracy=0.98)
    finished(mlflow, "x", "mnist", best_val_accuracy=0.97)
    assert find.best_run("x").run_id == first
    assert capsys.readouterr().out == ""
    best = finished(mlflow, "x", "folder:/pets", best_val_accuracy=0.6)
    finished(mlflow, "x", "folder:/pets", best_val_accuracy=0.5)
    assert find.best_run("x").run_id == best
    out = capsys.readouterr().out
    assert "those on folder:/pets, the data set of the latest, are compared, and not those on mnist" in out
    assert "--run-id" in out


def test_without_validation_the_latest_run_is_taken_and_said(
    mlflow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(mlflow, "x", test_accuracy=0.9)
    latest = finished(mlflow, "x", test_accuracy=0.8)
    assert find.best_run("x").run_id == latest
    assert "note: no run on mnist held out validation images to choose by" in capsys.readouterr().out
    rated = finished(mlflow, "x", best_val_accuracy=0.1)
    assert find.best_run("x").run_id == rated
    assert capsys.readouterr().out == ""
    newer = finished(mlflow, "x", test_accuracy=0.99)
    assert find.best_run("x").run_id == rated
    assert f"({newer}), held out no validation images to compare; --run-id" in capsys.readouterr().out


def test_what_cannot_choose_or_be_chosen(mlflow: Any) -> None:
    with pytest.raises(
        UsageError, match=r"cannot be chosen by 'test_accuracy'; there are: val_accuracy, val_loss"
    ):
        find.best_run("x", "test_accuracy")
    with pytest.raises(UsageError, match=r"has no experiment 'x' \(there are: Default\)"):
        find.best_run("x")
    with pytest.raises(UsageError, match="has no run 'nope'"):
        find.get_run("nope")
    mlflow.set_experiment("x")
    with pytest.raises(TrackingError, match=r"the experiment 'x' has no finished run; train one"):
        find.best_run("x")
    run_id = failed(mlflow, "x")
    with pytest.raises(TrackingError, match=f"run {run_id} is FAILED, not FINISHED"):
        find.get_run(run_id)
    empty = find.get_run(finished(mlflow, "x"))
    with pytest.raises(TrackingError, match="has no bundle to download"):
        find.download_bundle(empty, Path("there"))
    with pytest.raises(TrackingError, match=r"has no config\.json"):
        find.load_config(empty)
