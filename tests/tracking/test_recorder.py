"""Runs recorded by a training's second process."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
import torch

from mlp_dist.core.errors import TrackingError
from mlp_dist.tracking.run_dir import SAMPLES, RunRecord
from mlp_dist.tracking.upload import sync
from mlp_dist.training import recorder
from tests.helpers.calling import Call
from tests.helpers.launching import ROOT, environment, result
from tests.helpers.mlflow_servers import free_port, running_server

pytestmark = pytest.mark.slow

POINT = dict.fromkeys(("train_loss", "train_accuracy", "learning_rate", "samples_per_second"), 0.5)


def new_record(**fields: Any) -> RunRecord:
    return RunRecord(experiment="x", name="name", key=uuid4().hex, **fields)


def write_epochs(directory: Path, number: int) -> None:
    records = [{**POINT, "epoch": epoch, "timestamp_ms": 1000 * epoch} for epoch in range(1, number + 1)]
    records[0] |= {"val_loss": None, "steps": [{"step": 100, "loss": 0.75, "timestamp_ms": 900}]}
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def points(mlflow: Any, run_id: str | None, name: str) -> list[tuple[int, float, int]]:
    history = mlflow.MlflowClient().get_metric_history(run_id, name)
    return [(point.step, point.value, point.timestamp) for point in history]


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store for several tests, which then share a recorder."""
    return Path(shutil.copy(empty_store, tmp_path_factory.mktemp("shared"))).parent


@pytest.fixture
def shared(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mlflow with that store."""
    import mlflow

    monkeypatch.chdir(store)
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.fixture
def stderr(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Reads the stderr of a new recorder, which closes with the test: it would retry failed uploads."""
    monkeypatch.setattr(recorder, "PATIENCE", 1.0)
    recorder.start().close()
    yield lambda: capfd.readouterr().err
    recorder.start().close()


def test_epochs_are_uploaded_once(mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A notebook's mlflow.set_tracking_uri takes precedence.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/./mlflow.db")
    with recorder.open_run(tmp_path, new_record()) as run:
        write_epochs(tmp_path, 1)
        run_id = run.run_id()
        write_epochs(tmp_path, 3)
        run.changed()
        run.changed()
    assert not (tmp_path / "other.db").exists()
    (tmp_path / "sent.json").unlink()
    record, again = sync(tmp_path)
    assert (record.status, again) == ("FINISHED", run_id)
    assert points(mlflow, run_id, "train/loss") == [(epoch, 0.5, 1000 * epoch) for epoch in (1, 2, 3)]
    assert points(mlflow, run_id, "train/step_loss") == [(100, 0.75, 900)]
    assert points(mlflow, run_id, "val/loss") == []


def test_system_metrics_are_logged_on_request(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    name = "system/cpu_utilization_percentage"
    with recorder.open_run(tmp_path, new_record()) as run:
        run_id = run.run_id()
        while not points(mlflow, run_id, name):
            pass
    assert 0 <= points(mlflow, run_id, name)[0][1] <= 100


def test_failed_upload_is_kept(mlflow: Any, tmp_path: Path, stderr: Callable[[], str]) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        in_the_way = Path(mlflow.get_run(run.run_id()).info.artifact_uri)
        in_the_way.parent.mkdir(parents=True)
        in_the_way.touch()
        (tmp_path / "config.json").write_text("{}")
        run.record.add("config.json")
        run.record.summary = {"best_epoch": 1}
        # A picture that cannot be drawn costs a warning only.
        np.savez(
            tmp_path / SAMPLES, images=np.zeros((2, 1, 4, 4), np.uint8), labels=[0, 7], classes=["cat", "dog"]
        )
        run.changed()
    text = stderr()
    assert "warning: cannot draw samples.png: IndexError" in text
    assert "Not a directory" in text
    assert text.count("warning") == 2
    assert f"python -m mlp_dist.sync {tmp_path}\n" in text
    with pytest.raises(TrackingError, match=r"cannot take the run: .*Not a directory"):
        sync(tmp_path)
    in_the_way.unlink()
    assert sync(tmp_path) == (run.record, run.run_id())
    found = mlflow.get_run(run.run_id())
    assert (found.info.status, found.data.metrics["best_epoch"]) == ("FINISHED", 1)
    assert (in_the_way / "config.json").read_text() == "{}"


def test_many_runs_wait_less_for_an_unreachable_server(
    mlflow: Any, tmp_path: Path, stderr: Callable[[], str]
) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with recorder.open_run(tmp_path, new_record()) as parent, contextlib.ExitStack() as closing:
        for number in range(4):
            directory = tmp_path / str(number)
            directory.mkdir()
            nested = closing.enter_context(recorder.open_run(directory, new_record(parent=str(tmp_path))))
            assert nested.run_id() is None
    assert parent.run_id() is None
    assert recorder.start().patience == recorder.LEAST_PATIENCE
    text = stderr()
    assert text.count("warning") == 1
    assert text.count("upload the rest with: python -m mlp_dist.sync") == 5


def test_a_server_that_starts_late_gets_everything(
    mlflow: Any, tmp_path: Path, stderr: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, text = free_port(), ""
    uri = f"http://127.0.0.1:{port}"
    mlflow.set_tracking_uri(uri)
    monkeypatch.setattr(recorder, "PATIENCE", 60.0)
    (tmp_path / "server").mkdir()
    with contextlib.ExitStack() as stack:
        with recorder.open_run(tmp_path, new_record()) as run:
            write_epochs(tmp_path, 2)
            while f"warning: MLflow at {uri} cannot take the run: Connection refused" not in text:
                time.sleep(0.05)
                text += stderr()
            stack.enter_context(running_server(tmp_path / "server", port=port))
            write_epochs(tmp_path, 3)
        text += stderr()
        client = mlflow.MlflowClient(uri)
        assert client.get_run(run.run_id()).info.status == "FINISHED"
        steps = [point.step for point in client.get_metric_history(run.run_id(), "train/loss")]
    assert sorted(steps) == [1, 2, 3]
    assert "MLflow can be reached again" in text
    assert text.count("warning") == 1


def recorder_of(process: psutil.Process) -> psutil.Process:
    """The newest one; others may wait to be collected."""
    found = (each for each in process.children() if "mlp_dist.tracking.recording" in each.cmdline())
    return max(found, key=psutil.Process.create_time)


def test_training_does_not_wait_for_a_stopped_recorder(shared: Any, tmp_path: Path) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        process = recorder_of(psutil.Process())
        process.suspend()
        try:
            for epoch in range(1, 101):
                write_epochs(tmp_path, epoch)
                run.changed()
            assert process.status() == psutil.STATUS_STOPPED
        finally:
            process.resume()
    assert len(points(shared, run.run_id(), "train/loss")) == 100


def test_killed_recorder_is_restarted(shared: Any, tmp_path: Path) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        first = run.run_id()
        recorder_of(psutil.Process()).kill()
        run.record.summary = {"best_epoch": 1}
    found = shared.get_run(first)
    assert (found.info.status, found.data.metrics["best_epoch"]) == ("FINISHED", 1)


@contextlib.contextmanager
def training(cwd: Path) -> Iterator[tuple[psutil.Popen, psutil.Process]]:
    """A long training in its third epoch, and its recorder, in a process group of their own."""
    words = [sys.executable, str(ROOT / "launch/train.py"), "--dataset", "digits", "--epochs", "4000"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that started the tests in the background made them, and so their children, ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = psutil.Popen(
            [*words, "--output-dir", "output"], cwd=cwd, env=environment(), start_new_session=True, **options
        )
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


def test_killed_training_is_closed_by_sync_and_by_resuming(
    tmp_path: Path, mlflow: Any, train_here: Call
) -> None:
    with training(tmp_path) as (process, recording):
        process.kill()
        recording.wait(60)
    state = torch.load(tmp_path / "output/last.pt", weights_only=True)
    assert RunRecord.load(tmp_path / "output").status == "RUNNING"
    record, run_id = sync(tmp_path / "output")
    closed = mlflow.get_run(run_id).info
    assert record.status == closed.status == "KILLED"
    epochs = len(state["history"]) + 1
    done = result(train_here(f"--resume --output-dir output --epochs {epochs}"))
    assert (done["run_id"], done["epochs"]) == (run_id, epochs)
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert [step for step, *_ in points(mlflow, run_id, "train/loss")] == list(range(1, epochs + 1))


def test_ctrl_c_stops_all_processes_in_order(tmp_path: Path, mlflow: Any) -> None:
    with training(tmp_path) as (process, recording):
        os.killpg(process.pid, signal.SIGINT)
        _, text = process.communicate(timeout=60)
        assert not recording.is_running()
    assert process.returncode == 128 + signal.SIGINT
    assert "stopped by SIGINT" in text
    assert "Traceback" not in text
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "KILLED"
    state = torch.load(tmp_path / "output/last.pt", weights_only=True)
    steps = [step for step, *_ in points(mlflow, run.info.run_id, "train/loss")]
    assert steps == list(range(1, len(state["history"]) + 1))
