import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
import torch

from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.tracking.run_dir import RunRecord
from mlp_dist.tracking.sync import runs_in, sync
from mlp_dist.training import recorder
from tests.helpers.launching import ROOT, environment, result, run, train

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


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What a new recorder has said on stderr."""
    recorder.start().close()
    return lambda: capfd.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED"), (SystemExit, "FAILED")],
)
def test_a_run_ends_as_what_happened(
    raised: type[BaseException] | None, status: str, mlflow: Any, tmp_path: Path
) -> None:
    run_id = None
    ignored = contextlib.suppress(KeyboardInterrupt, RuntimeError, SystemExit)
    with ignored, recorder.open_run(tmp_path, new_record()) as run:
        run_id = run.run_id()
        if raised is not None:
            raise raised
    found = mlflow.get_run(run_id)
    assert (found.info.status, found.info.run_name) == (status, "name")
    assert found.info.end_time == RunRecord.load(tmp_path).ended_ms


def test_epochs_told_twice_stand_once(mlflow: Any, tmp_path: Path) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        write_epochs(tmp_path, 1)
        run_id = run.run_id()
        write_epochs(tmp_path, 3)
        run.changed()
        run.changed()
    (tmp_path / "sent.json").unlink()
    record, again = sync(tmp_path)
    assert (record.status, again) == ("FINISHED", run_id)
    assert points(mlflow, run_id, "train/loss") == [(epoch, 0.5, 1000 * epoch) for epoch in (1, 2, 3)]
    assert points(mlflow, run_id, "train/step_loss") == [(100, 0.75, 900)]
    assert points(mlflow, run_id, "val/loss") == []


def test_a_short_run_has_system_metrics_at_its_start_and_end(mlflow: Any, tmp_path: Path) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        pass
    found = points(mlflow, run.run_id(), "system/cpu_utilization_percentage")
    assert [step for step, *_ in found] == list(range(len(found)))
    assert len(found) >= 2
    assert all(0 <= value <= 100 for _, value, _ in found)
    names = mlflow.get_run(run.run_id()).data.metrics
    assert {"system/system_memory_usage_percentage", "system/disk_usage_percentage"} <= set(names)


def test_a_run_is_nested_in_its_parent_whoever_comes_first(mlflow: Any, tmp_path: Path) -> None:
    (tmp_path / "child").mkdir()
    parent = new_record()
    parent.save(tmp_path)
    with recorder.open_run(tmp_path / "child", new_record(parent=str(tmp_path))) as child:
        child_id = child.run_id()
    with recorder.open_run(tmp_path, parent) as run:
        assert mlflow.get_run(child_id).data.tags["mlflow.parentRunId"] == run.run_id()
    assert mlflow.search_runs(experiment_names=["x"], output_format="list").__len__() == 2
    assert runs_in(tmp_path) == [tmp_path, tmp_path / "child"]


def test_runs_are_kept_where_mlflow_was_told(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with recorder.open_run(tmp_path, new_record()) as run:
        pass
    assert mlflow.get_run(run.run_id()).info.status == "FINISHED"
    assert not (tmp_path / "other.db").exists()


def test_several_runs_are_open_at_once(mlflow: Any, tmp_path: Path) -> None:
    directories = [tmp_path / name for name in ("a", "b")]
    for directory in directories:
        directory.mkdir()
    with contextlib.ExitStack() as closing:
        runs = [closing.enter_context(recorder.open_run(each, new_record())) for each in directories]
        for number, each in enumerate(runs):
            each.record.summary = {"best_epoch": number}
    found = [mlflow.get_run(each.run_id()) for each in runs]
    assert [each.data.metrics["best_epoch"] for each in found] == [0, 1]
    assert [each.info.status for each in found] == ["FINISHED"] * 2


def test_what_cannot_be_sent_stays_until_it_can(mlflow: Any, tmp_path: Path, told: Callable[[], str]) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        in_the_way = Path(mlflow.get_run(run.run_id()).info.artifact_uri)
        in_the_way.parent.mkdir(parents=True)
        in_the_way.touch()
        (tmp_path / "config.json").write_text("{}")
        run.record.add("config.json")
        run.record.summary = {"best_epoch": 1}
    said = told()
    assert "Not a directory" in said
    assert said.count("warning") == 1
    assert f"upload the rest with: python -m mlp_dist.sync {tmp_path}\n" in said
    with pytest.raises(TrackingError, match=r"cannot take the run: .*Not a directory"):
        sync(tmp_path)
    in_the_way.unlink()
    assert sync(tmp_path) == (run.record, run.run_id())
    found = mlflow.get_run(run.run_id())
    assert (found.info.status, found.data.metrics["best_epoch"]) == ("FINISHED", 1)
    assert (in_the_way / "config.json").read_text() == "{}"


def test_many_runs_wait_little_where_mlflow_cannot_be_reached(
    mlflow: Any, tmp_path: Path, told: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    send = recorder.RunTracker._send

    def counting(run: recorder.RunTracker, what: str, *arguments: Any) -> Any:
        if what in ("settle", "end"):
            waits.append(arguments[0])
        return send(run, what, *arguments)

    monkeypatch.setattr(recorder.RunTracker, "_send", counting)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:9")
    with recorder.open_run(tmp_path, new_record()) as around, contextlib.ExitStack() as closing:
        for number in range(5):
            directory = tmp_path / str(number)
            directory.mkdir()
            nested = closing.enter_context(recorder.open_run(directory, new_record(parent=str(tmp_path))))
            assert nested.run_id() is None
    assert around.run_id() is None
    assert (waits[:3], waits[-3:]) == ([5.0, 2.5, 1.25], [0.25] * 3)
    assert len(waits) == 12
    said = told()
    assert said.count("warning") == 1
    assert said.count("upload the rest with") == 6
    assert f"upload the rest with: python -m mlp_dist.sync {tmp_path}\n" in said


def test_a_picture_that_cannot_be_drawn_is_told(mlflow: Any, tmp_path: Path, told: Callable[[], str]) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        run.draw("samples", np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 7]), ("cat", "dog"))
        run.changed()
    assert "warning: the picture samples cannot be drawn: IndexError" in told()
    assert mlflow.get_run(run.run_id()).info.status == "FINISHED"


def test_what_is_no_run_and_what_is_running(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        runs_in(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(TrackingError, match=r"run\.json cannot be read"):
        sync(tmp_path)
    held = try_to_lock(tmp_path)
    with pytest.raises(UsageError, match=f"a training runs in {tmp_path}: it sends by itself"):
        sync(tmp_path)
    assert held is not None
    os.close(held)


# The process


def recorder_of(process: psutil.Process) -> psutil.Process:
    (found,) = (each for each in process.children() if "mlp_dist.tracking.recording" in each.cmdline())
    return found


def test_the_recorder_has_no_torch(mlflow: Any, tmp_path: Path) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        run.draw("samples", np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1]), ("cat", "dog"))
        run.run_id()
        loaded = Path(f"/proc/{recorder_of(psutil.Process()).pid}/maps").read_text()
    assert "/torch/" not in loaded
    assert "/matplotlib/" in loaded
    assert (tmp_path / "figures/samples.png").exists()


def test_a_training_never_waits_for_a_recorder_that_stands_still(mlflow: Any, tmp_path: Path) -> None:
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
    assert len(points(mlflow, run.run_id(), "train/loss")) == 100


def test_a_recorder_that_is_killed_is_started_again(mlflow: Any, tmp_path: Path) -> None:
    with recorder.open_run(tmp_path, new_record()) as run:
        first = run.run_id()
        recorder_of(psutil.Process()).kill()
        run.record.summary = {"best_epoch": 1}
    found = mlflow.get_run(first)
    assert (found.info.status, found.data.metrics["best_epoch"]) == ("FINISHED", 1)


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


def test_a_killed_training_s_run_is_closed_by_sync_and_by_resuming(tmp_path: Path, mlflow: Any) -> None:
    with training(tmp_path) as (process, recording):
        process.kill()
        recording.wait(10)
    state = torch.load(tmp_path / "output/last.pt", weights_only=True)
    assert RunRecord.load(tmp_path / "output").status == "RUNNING"
    [run_id] = result(run([sys.executable, str(ROOT / "launch/sync.py"), "output"], tmp_path))["run_ids"]
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 1
    closed = mlflow.get_run(run_id).info
    assert closed.status == "KILLED"
    assert state["history"][-1]["timestamp_ms"] <= closed.end_time + 1
    assert [step for step, *_ in points(mlflow, run_id, "train/loss")] == [
        record["epoch"] for record in state["history"]
    ]
    epochs = len(state["history"]) + 1
    done = result(train("--resume", "--output-dir", "output", "--epochs", str(epochs), cwd=tmp_path))
    assert (done["run_id"], done["epochs"]) == (run_id, epochs)
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert [step for step, *_ in points(mlflow, run_id, "train/loss")] == list(range(1, epochs + 1))


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
