"""What is sent of runs whose directories, or whose MLflow, are not as they were."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.utils.validation import _validate_metric_name

from mlp_dist.core.errors import TrackingError
from mlp_dist.tracking.run_dir import FINISHED, RunRecord
from mlp_dist.tracking.store import shown
from mlp_dist.tracking.sync import runs_in, sync
from mlp_dist.tracking.upload import send
from mlp_dist.training.outputs import metric_names
from tests.helpers.launching import ROOT, launch, result, run

SYNC = [sys.executable, str(ROOT / "launch/sync.py")]


def write_run(directory: Path, name: str = "a run", **changes: Any) -> RunRecord:
    directory.mkdir(parents=True)
    record = RunRecord(experiment="e", name=name, key=f"key of {name}", params={"lr": 0.1}, **changes)
    record.end(FINISHED)
    record.save(directory)
    return record


def runs(mlflow: Any) -> dict[str, Any]:
    return {
        each.info.run_name: each for each in mlflow.search_runs(experiment_names=["e"], output_format="list")
    }


@pytest.mark.parametrize("how", ["deleted", "removed"])
def test_a_run_that_mlflow_has_lost_is_sent_again(mlflow: Any, tmp_path: Path, how: str) -> None:
    directory = tmp_path / "one"
    write_run(directory)
    _, first = sync(directory)
    assert sync(directory)[1] == first
    if how == "deleted":
        mlflow.delete_run(first)
    else:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
        sent = json.loads((directory / "sent.json").read_text())
        sent["uri"] = f"sqlite:///{tmp_path}/other.db"
        (directory / "sent.json").write_text(json.dumps(sent))
    _, second = sync(directory)
    assert second != first
    found = runs(mlflow)["a run"]
    assert (found.info.run_id, found.info.status, found.data.params) == (second, FINISHED, {"lr": "0.1"})


def test_a_run_that_goes_on_under_another_name_has_it(mlflow: Any, tmp_path: Path) -> None:
    record = write_run(tmp_path / "one", "mnist epochs=2 seed=0")
    run_id = send(tmp_path / "one")
    record.name = "mnist epochs=6 seed=0"
    record.save(tmp_path / "one")
    assert send(tmp_path / "one") == run_id
    assert mlflow.get_run(run_id).info.run_name == "mnist epochs=6 seed=0"


def test_runs_that_were_moved_together_stay_nested(mlflow: Any, tmp_path: Path) -> None:
    whole = tmp_path / "sweep"
    write_run(whole, "parent")
    write_run(whole / "trial-0000", "child", parent=str(whole))
    moved = tmp_path / "elsewhere"
    shutil.move(whole, moved)
    for directory in runs_in(moved):
        sync(directory)
    found = runs(mlflow)
    assert found["child"].data.tags["mlflow.parentRunId"] == found["parent"].info.run_id


@pytest.mark.slow
@pytest.mark.usefixtures("store_at_hand")
def test_one_that_cannot_be_sent_holds_up_no_other(tmp_path: Path) -> None:
    for name in ("a", "c"):
        write_run(tmp_path / name, name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.json").write_text("{")
    (tmp_path / "d").mkdir()
    done = run([*SYNC, "a", "b", "c", "d"], tmp_path)
    assert done.returncode == 1
    assert len(json.loads(done.stdout.splitlines()[-1])["run_ids"]) == 2
    assert "b/run.json cannot be read" in done.stderr
    assert "d holds no run: there is no run.json in it" in done.stderr


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\xff\xfe", "can't decode"),
        (b'{"epoch": 2, "tra', "Unterminated string"),
        (b"null", "None is no object"),
    ],
)
def test_a_damaged_line_is_named(line: bytes, problem: str, mlflow: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    good = json.dumps({"epoch": 1, "timestamp_ms": 1, "train_loss": 0.5, "num_images": 9}).encode()
    (tmp_path / "one/metrics.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(
        TrackingError, match=r"one/metrics\.jsonl:2: the line is damaged \(.*; remove it"
    ) as raised:
        send(tmp_path / "one")
    assert problem in str(raised.value)
    (tmp_path / "one/metrics.jsonl").write_bytes(good + b"\n")
    send(tmp_path / "one")
    assert runs(mlflow)["a run"].data.metrics["train/loss"] == 0.5


def test_a_deleted_experiment_is_told_with_what_brings_it_back(mlflow: Any, tmp_path: Path) -> None:
    number = mlflow.create_experiment("gone")
    mlflow.delete_experiment(number)
    RunRecord(experiment="gone", name="n", key="k").save(tmp_path)
    with pytest.raises(TrackingError, match=f"'gone' was deleted; .*restore --experiment-id {number}"):
        send(tmp_path)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql://me:secret@there:5/x", "postgresql://me:***@there:5/x"),
        ("postgresql://there/x?user=me&password=secret&a=b", "postgresql://there/x?user=me&password=***&a=b"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_no_password_is_shown(uri: str, told: str) -> None:
    assert shown(uri) == told


def test_class_names_become_names_of_metrics() -> None:
    classes = ["7", "c#", "c+", "a/../b", ".", "..", "/", "日本 \N{CAT}", "1/2", "a b"]
    names = metric_names(classes)
    assert (names[0], names[-1]) == ("7", "a b")
    assert len(set(names)) == len(classes)
    for name in names:
        _validate_metric_name(f"test_class_accuracy/{name}")


@pytest.mark.slow
@pytest.mark.usefixtures("store_at_hand")
def test_a_training_that_goes_on_for_longer_says_so(tmp_path: Path) -> None:
    flags = ("--dataset", "digits", "--output-dir", "one")
    first = result(launch(*flags, "--epochs", "1", cwd=tmp_path))
    second = result(launch(*flags, "--resume", "--epochs", "2", cwd=tmp_path))
    assert second["run_id"] == first["run_id"]
    record = RunRecord.load(tmp_path / "one")
    assert record.name == "mnist dataset=digits epochs=2 seed=0"
    assert record.params["epochs"] == "2" or record.params["epochs"] == 2
    assert json.loads((tmp_path / "one/config.json").read_text())["epochs"] == 2
