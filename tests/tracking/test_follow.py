"""A process beside a training brings MLflow up to date, whatever happens to it, the training, or MLflow."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import torch

from mlp_dist.console.process import num_cores
from mlp_dist.tracking.follow import PATIENCE, Follower, followed
from mlp_dist.tracking.run_dir import FINISHED, RunRecord, Uploaded
from mlp_dist.tracking.upload import sync
from tests.helpers.calling import Call
from tests.helpers.comparing import check_all_is_there, check_points, client_of, logged, runs_of, write_epochs
from tests.helpers.launching import QUICK, ROOT, environment, result, train, wait_until
from tests.helpers.mlflow_servers import free_port, running_server

pytestmark = pytest.mark.slow

SECONDS = 120


def follower_of(process: psutil.Process) -> psutil.Process:
    (found,) = (each for each in process.children() if "--follow" in each.cmdline())
    return found


@contextmanager
def run_in(directory: Path) -> Iterator[RunRecord]:
    """A run with a follower, in place of a training; it ends, and waits for MLflow, with the context."""
    directory.mkdir(exist_ok=True)
    record = RunRecord(experiment="x", name="name", key=uuid4().hex)
    with followed(directory, record, Follower(directory)):
        yield record


def run_id_of(directory: Path) -> str:
    return Uploaded.load(directory).run_id


def test_a_killed_follower_is_replaced(
    mlflow: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with run_in(tmp_path):
        write_epochs(tmp_path, range(1, 3))
        wait_until(lambda: run_id_of(tmp_path))
        before = run_id_of(tmp_path)
        follower_of(psutil.Process()).kill()
        write_epochs(tmp_path, range(3, 5))
    assert run_id_of(tmp_path) == before
    # It has no system metrics either.
    check_points(client_of(tmp_path), before, tmp_path)
    assert capfd.readouterr().err == ""


def test_a_locked_database_is_waited_for(
    mlflow: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)
    release = threading.Timer(8, database.rollback)
    with run_in(tmp_path):
        write_epochs(tmp_path, range(1, 4))
        wait_until(lambda: run_id_of(tmp_path))
        database.execute("BEGIN EXCLUSIVE")
        release.start()
    assert release.finished.is_set()
    release.join()
    database.close()
    check_points(client_of(tmp_path), run_id_of(tmp_path), tmp_path)
    assert "upload the rest" not in capfd.readouterr().err


def test_system_metrics_are_logged_on_request(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    name = "system/cpu_utilization_percentage"
    with run_in(tmp_path):
        wait_until(lambda: run_id_of(tmp_path) and logged(tmp_path, run_id_of(tmp_path), name))
    assert 0 <= logged(tmp_path, run_id_of(tmp_path), name)[0][1] <= 100


def test_an_absent_server_is_given_up_and_a_late_one_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    never, late, port = tmp_path / "never", tmp_path / "late", free_port()
    uri = f"http://127.0.0.1:{port}"
    refused = f"warning: MLflow at {uri} cannot take the run: Connection refused"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    errors = ""

    def warned() -> bool:
        nonlocal errors
        errors += capfd.readouterr().err
        return refused in errors

    with run_in(never):
        write_epochs(never, range(1, 4))
        wait_until(warned)
        ended = time.monotonic()
    assert time.monotonic() - ended < PATIENCE + 8
    errors += capfd.readouterr().err
    assert errors.count("warning") == 1
    assert f"upload the rest with: python -m mlp_dist.sync {never}\n" in errors
    assert run_id_of(never) == ""

    errors = ""
    with ExitStack() as stack:
        with run_in(late):
            write_epochs(late, range(1, 4))
            wait_until(warned)
            stack.enter_context(running_server(tmp_path, port=port))
            write_epochs(late, range(4, 6))
        errors += capfd.readouterr().err
        assert "MLflow can be reached again" in errors
        assert errors.count("warning") == 1
        sync(never)
        for directory in (never, late):
            check_points(MlflowClient(uri), run_id_of(directory), directory)


# A process of its own, which ends while the connection waits.
FOLLOW = """
import sys
from pathlib import Path
from mlp_dist.tracking import follow
follow.STUCK = 1.0
sys.exit(0 if follow.follow(Path.cwd()) else 1)
"""


def test_a_database_that_never_answers_is_given_up(tmp_path: Path) -> None:
    record = RunRecord(experiment="x", name="name", key="key")
    record.end(FINISHED)
    record.save(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = subprocess.run(
            [sys.executable, "-c", FOLLOW],
            cwd=tmp_path,
            env=environment(MLFLOW_TRACKING_URI=f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x"),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert (done.returncode, done.stderr) == (1, "warning: MLflow does not answer\n")


def test_a_follower_ends_with_a_training_that_is_killed_while_it_starts(tmp_path: Path) -> None:
    code = "import os; from pathlib import Path; from mlp_dist.tracking.follow import Follower; "
    words = [sys.executable, "-c", f"{code}Follower(Path('output')); os.kill(os.getpid(), 9)"]
    # Returns when the follower, too, has closed its stderr.
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")


@contextmanager
def training(cwd: Path) -> Iterator[tuple[psutil.Popen, psutil.Process]]:
    """A long training whose run is in MLflow, and its follower, in a process group of their own."""
    words = [sys.executable, str(ROOT / "launch/train.py"), *QUICK, "--epochs", "4000"]
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
        follower = follower_of(process)
        reading = threading.Thread(target=process.stdout.read, daemon=True)
        reading.start()
        wait_until(lambda: run_id_of(cwd / "output"))
        yield process, follower
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reading.join()
        process.stdout.close()
        process.stderr.close()


def test_a_killed_training_is_closed_by_sync_and_by_resuming(
    tmp_path: Path, mlflow: Any, train_here: Call
) -> None:
    output = tmp_path / "output"
    with training(tmp_path) as (process, follower):
        process.kill()
        follower.wait(30)
    last_written = max(path.stat().st_mtime for path in output.iterdir() if path.name != "uploaded.json")
    state = torch.load(output / "last.pt", weights_only=True)
    assert RunRecord.load(output).status == "RUNNING"
    record, run_id, _ = sync(output)
    closed = mlflow.get_run(run_id).info
    assert record.status == closed.status == "KILLED"
    assert closed.end_time == pytest.approx(last_written * 1000, abs=1500)
    epochs = len(state["history"]) + 1
    done = result(train_here(f"--resume --output-dir output --epochs {epochs}"))
    assert (done["run_id"], done["epochs"]) == (run_id, epochs)
    check_all_is_there(client_of(tmp_path), run_id, output)
    found = mlflow.get_run(run_id)
    assert found.data.tags["epochs"] == str(epochs)
    assert f"epochs={epochs} " in found.info.run_name
    assert "error" not in found.data.tags


def test_ctrl_c_stops_all_processes_in_order(tmp_path: Path, mlflow: Any) -> None:
    with training(tmp_path) as (process, follower):
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
        text = process.stderr.read()
        assert not follower.is_running()
    assert "stopped by SIGINT" in text
    assert "Traceback" not in text
    (run,) = runs_of(tmp_path)
    assert run.data.tags["error"] == "stopped by SIGINT"
    check_points(client_of(tmp_path), run.info.run_id, tmp_path / "output", "KILLED")


@pytest.mark.nightly
@pytest.mark.usefixtures("store_at_hand")
def test_a_busy_machine_loses_nothing(tmp_path: Path) -> None:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * num_cores())]
    try:
        done = result(train(*QUICK, cwd=tmp_path))
    finally:
        for each in loops:
            each.kill()
            each.wait()
    check_all_is_there(client_of(tmp_path), done["run_id"], Path(done["output_dir"]))
