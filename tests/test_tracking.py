import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from launching import ROOT, Trained, environment, result, train

from mlp_dist import recorder
from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.tracking import find

pytestmark = pytest.mark.slow


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mlflow with a store of its own."""
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(before)


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
                *("predictions", "mistakes", "first_layer"),
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


@pytest.mark.parametrize(
    ("raised", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED"), (SystemExit, "FAILED")],
)
def test_a_run_ends_as_what_happened(raised: type[BaseException] | None, status: str, mlflow: Any) -> None:
    run_id = ""
    try:
        with recorder.open_run("x", "name") as run:
            run_id = run.run_id
            if raised is not None:
                raise raised
    except (KeyboardInterrupt, RuntimeError, SystemExit):
        pass
    assert mlflow.get_run(run_id).info.status == status
    assert mlflow.get_run(run_id).info.run_name == "name"


def test_epochs_told_twice_stand_once(mlflow: Any) -> None:
    record = {
        **dict.fromkeys(("train_loss", "train_accuracy", "learning_rate", "samples_per_second"), 0.5),
        **{"val_loss": None, "val_accuracy": None, "epoch": 1, "timestamp_ms": 1000},
        "steps": [{"step": 100, "loss": 0.75, "timestamp_ms": 900}],
    }
    with recorder.open_run("x", None) as run:
        run.log_epochs([record])
        run.log_epochs([record, {**record, "epoch": 2, "timestamp_ms": 2000, "steps": []}])
    client = mlflow.MlflowClient()
    points = client.get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.timestamp) for point in points] == [(1, 1000), (2, 2000)]
    assert client.get_metric_history(run.run_id, "val/loss") == []
    points = client.get_metric_history(run.run_id, "train/step_loss")
    assert [(point.step, point.value, point.timestamp) for point in points] == [(100, 0.75, 900)]


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
    with pytest.raises(TrackingError, match="cannot open run nope"):
        recorder.open_run("x", None, "nope").__enter__()
    empty = find.get_run(finished(mlflow, "x"))
    with pytest.raises(TrackingError, match="has no bundle to download"):
        find.download_bundle(empty, Path("there"))
    with pytest.raises(TrackingError, match=r"has no config\.json"):
        find.load_config(empty)


# The process that records


def recorder_of(process: psutil.Process) -> psutil.Process:
    (found,) = (each for each in process.children() if "mlp_dist.recording" in each.cmdline())
    return found


def test_the_recorder_has_no_torch_and_the_run_is_named_after_this_command(mlflow: Any) -> None:
    with recorder.open_run("x", None) as run:
        run.log_figure("samples", np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1]), ("cat", "dog"))
        run.wait()
        loaded = Path(f"/proc/{recorder_of(psutil.Process()).pid}/maps").read_text()
    assert "/torch/" not in loaded
    assert "/matplotlib/" in loaded
    assert mlflow.get_run(run.run_id).data.tags["mlflow.source.name"] == sys.argv[0]


def failing() -> Iterator[recorder.RunTracker]:
    with recorder.open_run("x", None) as run:
        yield run
        run.log_config({"lr": 0.1})
        run.log_summary({"best_epoch": 1})


def test_what_cannot_be_stored_fails_the_run(mlflow: Any) -> None:
    going = failing()
    run = next(going)
    in_the_way = Path(mlflow.get_run(run.run_id).info.artifact_uri)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    with pytest.raises(
        TrackingError, match=r"MLflow at .* cannot record the run: .*Not a directory: .*; see MLFLOW_"
    ):
        next(going)
    found = mlflow.get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FAILED", {"best_epoch": 1})


def test_runs_are_kept_where_mlflow_was_told(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with recorder.open_run("x", None) as run:
        pass
    assert mlflow.get_run(run.run_id).info.status == "FINISHED"
    assert not (tmp_path / "other.db").exists()


def test_several_runs_are_open_at_once(mlflow: Any) -> None:
    with recorder.open_run("x", "a") as first, recorder.open_run("x", "b") as second:
        first.log_summary({"best_epoch": 1})
        second.log_summary({"best_epoch": 2})
    found = [mlflow.get_run(run.run_id) for run in (first, second)]
    assert [run.data.metrics["best_epoch"] for run in found] == [1, 2]
    assert [run.info.status for run in found] == ["FINISHED"] * 2


def test_a_history_is_stored_as_it_was_when_it_was_logged(mlflow: Any) -> None:
    names = ("train_loss", "train_accuracy", "learning_rate", "samples_per_second")
    record = {**dict.fromkeys(names, 0.5), "epoch": 1, "timestamp_ms": 1000}
    with recorder.open_run("x", None) as run:
        for _ in range(20):
            history = [record]
            run.log_epochs(history)
            history.append({**record, "epoch": 2})
    points = mlflow.MlflowClient().get_metric_history(run.run_id, "train/loss")
    assert [point.step for point in points] == [1]


LONG = ("--dataset", "digits", "--epochs", "4000", "--output-dir", "output")


@contextlib.contextmanager
def training(cwd: Path) -> Iterator[tuple[psutil.Popen, psutil.Process]]:
    """A long training in its third epoch, and its recorder; Ctrl-C reaches both."""
    words = [sys.executable, str(ROOT / "launch/train.py"), *LONG]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that started the tests in the background has told them to ignore it, and so their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = psutil.Popen(words, cwd=cwd, env=environment(), start_new_session=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                break
        yield process, recorder_of(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_killed_training_s_recorder_ends_and_resuming_ends_its_run(tmp_path: Path, mlflow: Any) -> None:
    with training(tmp_path) as (process, recording):
        process.kill()
        recording.wait(10)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "RUNNING"
    state = torch.load(tmp_path / "output/last.pt", weights_only=True)
    epochs = len(state["history"]) + 1
    done = result(train("--resume", "--output-dir", "output", "--epochs", str(epochs), cwd=tmp_path))
    assert (done["run_id"], done["epochs"]) == (run.info.run_id, epochs)
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, epochs + 1))


def test_a_training_whose_recorder_is_killed_says_so_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    with training(tmp_path) as (process, recording):
        recording.kill()
        _, told = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" not in told
    assert (
        f"error: the process that records the run in MLflow (pid {recording.pid}) was killed by SIGKILL; "
        "the training's last checkpoint is kept, and --resume goes on from there"
    ) in told
    assert len(torch.load(tmp_path / "output/last.pt", weights_only=True)["history"]) >= 3


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_stops_the_training_in_order(
    signum: signal.Signals, tmp_path: Path, mlflow: Any
) -> None:
    with training(tmp_path) as (process, recording):
        os.killpg(process.pid, signum)
        _, told = process.communicate(timeout=20)
        assert not recording.is_running()
    assert process.returncode == 128 + signum
    assert "Traceback" not in told
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "KILLED"
    state = torch.load(tmp_path / "output/last.pt", weights_only=True)
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, len(state["history"]) + 1))
