"""MLflow's runs are made equal to run directories, whatever happened to either."""

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking._tracking_service import utils

from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.tracking.find import download_bundle, find_run
from mlp_dist.tracking.run_dir import FAILED, FINISHED, RunRecord, Uploaded, is_uploaded, runs_in
from mlp_dist.tracking.store import TrashedError, follow_move
from mlp_dist.tracking.upload import sync, upload
from tests.helpers.calling import Call
from tests.helpers.comparing import check_all_is_there, client_of
from tests.helpers.launching import Trained, result


def write_run(directory: Path, name: str = "a run", **changes: Any) -> RunRecord:
    directory.mkdir(parents=True)
    record = RunRecord(experiment="e", name=name, key=f"key of {name}", params={"lr": 0.1}, **changes)
    record.end(FINISHED)
    record.save(directory)
    return record


def stored_runs(mlflow: Any) -> dict[str, Any]:
    found = mlflow.search_runs(experiment_names=["e"], output_format="list")
    return {each.info.run_name: each for each in found}


@pytest.fixture
def project(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a project with a finished training; this process works in it."""
    copy = tmp_path / "project"
    shutil.copytree(trained.directory, copy, ignore=shutil.ignore_patterns("model_store"))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/mlflow.db")
    # MLflow remembers where the artifacts of a run are, and the tests share one.
    utils._artifact_repos_cache.clear()
    # Leaves the place of the copy's original.
    follow_move(copy / "mlflow.db")
    return copy


def output_of(project: Path) -> Path:
    [output] = (project / "outputs").iterdir()
    return output


def test_uploading_again_changes_nothing(project: Path) -> None:
    output = output_of(project)
    record, run_id, sent = sync(output)
    assert (record.status, sent) == (FINISHED, [])
    check_all_is_there(client_of(project), run_id, output)
    found = client_of(project).get_run(run_id)
    assert len(found.data.params) <= 20
    assert len(found.data.metrics) <= 14
    assert found.data.params["lr"] == "0.1"


@pytest.mark.parametrize("lost", ["mlruns", "mlruns/*/*/artifacts/figures", "mlruns/*/models", "mlflow.db"])
def test_what_was_lost_is_sent_again(lost: str, project: Path) -> None:
    output, before = output_of(project), Uploaded.load(output_of(project)).run_id
    for path in project.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, run_id, sent = sync(output)
    assert sent
    assert (run_id == before) == (lost != "mlflow.db")
    check_all_is_there(client_of(project), run_id, output)
    assert (download_bundle(find_run(run_id), project / "downloaded") / "weights.pt").exists()


@pytest.mark.parametrize("has_mlruns", [True, False])
def test_a_project_that_was_moved_works_in_its_new_place(
    has_mlruns: bool, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    moved = project.rename(project.with_name("elsewhere"))
    monkeypatch.chdir(moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    if not has_mlruns:
        shutil.rmtree(moved / "mlruns")
    utils._artifact_repos_cache.clear()
    capfd.readouterr()
    _, run_id, sent = sync(output_of(moved))
    assert bool(sent) != has_mlruns
    note = f"the artifacts' old place {project}/mlruns/1; it is {moved}/mlruns/1 now"
    assert note in capfd.readouterr().err
    assert not project.exists()
    check_all_is_there(client_of(moved), run_id, output_of(moved))
    download_bundle(find_run(run_id), moved / "downloaded")


def test_a_deleted_run_stays_deleted(project: Path, call: Call) -> None:
    output, client = output_of(project), client_of(project)
    run_id = Uploaded.load(output).run_id
    write_run(project / "outputs/other", "other")
    client.delete_run(run_id)
    with pytest.raises(TrashedError, match=f"mlflow runs restore --run-id {run_id}"):
        sync(output)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}
    done = call(f"mlp_dist.sync {output} {project}/outputs/other", project, **store)
    assert len(result(done)["run_ids"]) == 1
    assert f"({run_id}) is in MLflow's trash and stays there" in done.stdout
    for command in ("serve.package --run-id", "mlp_dist.promote"):
        refused = call(f"{command} {run_id}", project, **store)
        assert (refused.returncode, "is in MLflow's trash" in refused.stderr) == (1, True)
    client.restore_run(run_id)
    assert sync(output)[1:] == (run_id, [])


def test_a_failed_run_says_why(mlflow: Any, tmp_path: Path) -> None:
    record = write_run(tmp_path / "one", description="Some words.")
    record.end(FAILED, reason="the loss of step 3 is not finite")
    record.save(tmp_path / "one")
    found = mlflow.get_run(upload(tmp_path / "one"))
    assert found.info.status == FAILED
    assert found.data.tags["error"] == "the loss of step 3 is not finite"
    assert found.data.tags["mlflow.note.content"].endswith("FAILED: the loss of step 3 is not finite")


def test_renamed_run(mlflow: Any, tmp_path: Path) -> None:
    record = write_run(tmp_path / "one", "epochs=2 seed=0 · mnist")
    (tmp_path / "one/config.json").write_text("{}")
    run_id = upload(tmp_path / "one")
    record.name = "epochs=6 seed=0 · mnist"
    record.save(tmp_path / "one")
    assert upload(tmp_path / "one") == run_id
    assert mlflow.get_run(run_id).info.run_name == "epochs=6 seed=0 · mnist"


def test_nested_runs_that_moved_stay_nested(mlflow: Any, tmp_path: Path) -> None:
    whole = tmp_path / "sweep"
    write_run(whole, "parent")
    write_run(whole / "trial-0000", "child", parent=str(whole))
    moved = tmp_path / "elsewhere"
    shutil.move(whole, moved)
    assert runs_in(moved) == [moved, moved / "trial-0000"]
    # The child first, which creates its parent.
    for directory in reversed(runs_in(moved)):
        sync(directory)
    found = stored_runs(mlflow)
    assert len(found) == 2
    assert found["child"].data.tags["mlflow.parentRunId"] == found["parent"].info.run_id


def test_command_uploads_the_others_if_one_fails(mlflow: Any, tmp_path: Path, call: Call) -> None:
    for name in ("a", "c"):
        write_run(tmp_path / name, name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.json").write_text("{")
    done = call("mlp_dist.sync a b c", MLFLOW_TRACKING_URI=mlflow.get_tracking_uri())
    assert done.returncode == 1
    assert len(json.loads(done.stdout.splitlines()[-1])["run_ids"]) == 2
    assert "b/run.json cannot be read" in done.stderr


def test_running_training_uploads_itself(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    held = try_to_lock(tmp_path / "a")
    with pytest.raises(UsageError, match=r"a training runs in .*/a and uploads itself"):
        sync(tmp_path / "a")
    assert held is not None
    os.close(held)


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"epoch": 2', b"null"])
def test_damaged_line(line: bytes, mlflow: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    good = json.dumps({"epoch": 1, "timestamp_ms": 1, "train_loss": 0.5, "num_images": 9}).encode()
    (tmp_path / "one/metrics.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(TrackingError, match=r"one/metrics\.jsonl:2: the line is damaged .*; remove it"):
        upload(tmp_path / "one")
    # Without its end of line it is still being written.
    (tmp_path / "one/metrics.jsonl").write_bytes(good + b"\n" + line)
    upload(tmp_path / "one")
    assert stored_runs(mlflow)["a run"].data.metrics["train/loss"] == 0.5


def test_a_run_of_the_version_before(mlflow: Any, project: Path, tmp_path: Path) -> None:
    """It listed its files, kept a record of what it had sent, and had a metric for each class."""
    old = tmp_path / "old"
    shutil.copytree(output_of(project), old)
    values = json.loads((old / "run.json").read_text())
    for name in ("reason", "run_id", "experiment_id"):
        del values[name]
    values |= {"key": "old", "artifacts": ["config.json", "bundle"], "models": [{"name": "best"}]}
    values["summary"]["test_class_accuracy/7"] = 0.5
    (old / "run.json").write_text(json.dumps(values))
    (old / "sent.json").write_text(json.dumps({"key": "old", "run_id": "gone", "status": "FINISHED"}))
    for name in ("uploaded.json", "samples.npz", "predictions.npz"):
        (old / name).unlink()
    assert not is_uploaded(old)
    run_id = upload(old)
    run = find_run(run_id)
    assert run.metrics["best_val_accuracy"] == values["summary"]["best_val_accuracy"]
    assert "figures" in {each.path for each in mlflow.MlflowClient().list_artifacts(run_id)}
    download_bundle(run, tmp_path / "downloaded")


@pytest.mark.slow
def test_mlflow_s_variables_do_what_they_do_elsewhere(train_here: Call, tmp_path: Path) -> None:
    client, flags = client_of(tmp_path), "--recipe mnist-logistic --dataset digits --epochs 1"
    tags = {"MLFLOW_TAGS": '{"team": "vision", "mlflow.note.content": "ours"}'}
    named = result(train_here(flags, MLFLOW_EXPERIMENT_NAME="theirs", **tags))["run_id"]
    found = client.get_run(named)
    assert client.get_experiment(found.info.experiment_id).name == "theirs"
    assert found.data.tags["team"] == "vision"
    begun = client.create_run(client.create_experiment("by id"), run_name="begun elsewhere").info
    by_id = result(train_here(flags, MLFLOW_EXPERIMENT_ID=begun.experiment_id))["run_id"]
    assert client.get_run(by_id).info.experiment_id == begun.experiment_id
    assert result(train_here(flags, MLFLOW_RUN_ID=begun.run_id))["run_id"] == begun.run_id
    assert client.get_run(begun.run_id).info.run_name == "begun elsewhere"
    flag = result(train_here(f"{flags} --experiment mine", MLFLOW_EXPERIMENT_NAME="theirs"))["run_id"]
    assert client.get_experiment(client.get_run(flag).info.experiment_id).name == "mine"
    wrong = train_here(flags, MLFLOW_TAGS="team=vision")
    assert wrong.returncode == 2
    assert "MLFLOW_TAGS is 'team=vision'; it must be a JSON object" in wrong.stderr


@pytest.mark.parametrize(
    ("revision", "message"),
    [("ffffffffffff", "a newer version of MLflow"), ("451aebb31d03", "mlflow db upgrade")],
)
def test_the_schema_of_another_mlflow(revision: str, message: str, mlflow: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(TrackingError, match=message):
        upload(tmp_path / "one")
