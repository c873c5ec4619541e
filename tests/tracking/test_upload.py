"""Uploads of runs whose directory or store has changed."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.utils.validation import _validate_metric_name

from mlp_dist.cli import sync as sync_command
from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.tracking.run_dir import FINISHED, RunRecord
from mlp_dist.tracking.upload import runs_in, send, sync
from mlp_dist.training.outputs import metric_names


def write_run(directory: Path, name: str = "a run", **changes: Any) -> RunRecord:
    directory.mkdir(parents=True)
    record = RunRecord(experiment="e", name=name, key=f"key of {name}", params={"lr": 0.1}, **changes)
    record.end(FINISHED)
    record.save(directory)
    return record


def stored_runs(mlflow: Any) -> dict[str, Any]:
    found = mlflow.search_runs(experiment_names=["e"], output_format="list")
    return {each.info.run_name: each for each in found}


@pytest.mark.parametrize("how", ["run deleted", pytest.param("store removed", marks=pytest.mark.slow)])
def test_lost_run_is_uploaded_again(mlflow: Any, tmp_path: Path, how: str) -> None:
    directory = tmp_path / "one"
    write_run(directory)
    _, first = sync(directory)
    assert sync(directory)[1] == first
    if how == "run deleted":
        mlflow.delete_run(first)
    else:
        uri = f"sqlite:///{tmp_path}/other.db"
        mlflow.set_tracking_uri(uri)
        sent = json.loads((directory / "sent.json").read_text())
        (directory / "sent.json").write_text(json.dumps({**sent, "uri": uri}))
    _, second = sync(directory)
    assert second != first
    found = stored_runs(mlflow)["a run"]
    assert (found.info.run_id, found.info.status, found.data.params) == (second, FINISHED, {"lr": "0.1"})


def test_renamed_run(mlflow: Any, tmp_path: Path) -> None:
    record = write_run(tmp_path / "one", "mnist epochs=2 seed=0")
    run_id = send(tmp_path / "one")
    record.name = "mnist epochs=6 seed=0"
    record.save(tmp_path / "one")
    assert send(tmp_path / "one") == run_id
    assert mlflow.get_run(run_id).info.run_name == "mnist epochs=6 seed=0"


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


def test_command_uploads_the_others_if_one_fails(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "c"):
        write_run(tmp_path / name, name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["sync", "a", "b", "c"])
    assert sync_command.main() == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out.splitlines()[-1])["run_ids"]) == 2
    assert "b/run.json cannot be read" in err


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
        send(tmp_path / "one")
    # Without its end of line it is still being written.
    (tmp_path / "one/metrics.jsonl").write_bytes(good + b"\n" + line)
    send(tmp_path / "one")
    assert stored_runs(mlflow)["a run"].data.metrics["train/loss"] == 0.5


def test_class_names_become_metric_names() -> None:
    classes = ["7", "c#", "c+", "a/../b", "..", "/", "日本 \N{CAT}", "a b"]
    names = metric_names(classes)
    assert len(set(names)) == len(classes)
    for name in names:
        _validate_metric_name(f"test_class_accuracy/{name}")
