"""Sweeps from the command line: a whole one, mistakes, and interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState

from mlp_dist.sweep.plan import load_plan, open_study
from mlp_dist.tracking.run_dir import Uploaded
from tests.helpers.calling import Call
from tests.helpers.comparing import runs_of
from tests.helpers.launching import environment, result, run, wait_until

SECONDS = 240
SWEEP = [sys.executable, "-m", "mlp_dist.sweep"]

SPACE = """
[fixed]
dataset = "digits"
epochs = {epochs}

[space]
lr = {{ low = 0.02, high = 0.1, log = true }}
hidden_sizes = [[16], [32, 16]]
"""


def mlflow_runs(directory: Path) -> dict[str, Any]:
    """The runs in the store beside the sweep, by name."""
    return {run.info.run_name: run for run in runs_of(directory)}


@pytest.mark.slow
@pytest.mark.usefixtures("store_at_hand")
def test_two_workers_share_the_trials_and_nest_their_runs(call: Call, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(SPACE.format(epochs=1))
    line = "mlp_dist.sweep space.toml --trials 3 --workers 2 --output-dir all"
    store = f"sqlite:///{tmp_path}/mlflow.db"
    done = call(line, MLFLOW_TRACKING_URI=store)
    values = result(done)
    assert "warning" not in done.stderr
    package = f"MLFLOW_TRACKING_URI={store} python -m serve.package --run-id {values['best_run_id']}"
    assert f"\n  package: {package}\n" in done.stdout
    assert [values[name] for name in ("num_trials", "complete", "unfinished")] == [3, 3, 0]
    best = open_study(load_plan(tmp_path / "all")).best_trial
    assert (values["best_value"], values["best_trial"]) == (best.value, best.number)
    assert values["best_run_id"] == Uploaded.load(tmp_path / f"all/trial-000{best.number}").run_id
    assert f" --lr {best.params['lr']:.3g}" in values["command"]

    found = mlflow_runs(tmp_path)
    parent = found.pop("sweep mnist: lr, hidden_sizes")
    assert (parent.info.run_id, parent.info.status) == (values["run_id"], "FINISHED")
    assert parent.data.params["space.lr"] == "0.02 to 0.1, log"
    assert parent.data.metrics["best_val_accuracy"] == values["best_value"]
    assert values["command"] in parent.data.tags["mlflow.note.content"]
    pictures = list(tmp_path.rglob("parallel_coordinates.png"))
    assert len(pictures) == 2, "one in the sweep's directory and one in MLflow's"
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert len(found) == 3
    for nested in found.values():
        assert nested.data.tags["mlflow.parentRunId"] == values["run_id"]
        assert nested.info.status == "FINISHED"


@contextmanager
def sweeping(*flags: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """A sweep in a process group of its own."""
    process = subprocess.Popen(
        [*SWEEP, *flags],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(family(process))
        process.communicate()


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)


def epochs(directory: Path, number: int) -> list[int]:
    with suppress(FileNotFoundError):
        lines = (directory / f"trial-{number:04}/metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["epoch"] for line in lines]
    return []


@pytest.mark.nightly
def test_killed_sweep_resumes_its_trials(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path)
    directory = tmp_path / "all"
    (tmp_path / "space.toml").write_text(SPACE.format(epochs=10))
    with sweeping("space.toml", "--output-dir", "all", "--trials", "1", cwd=tmp_path) as process:
        wait_until(lambda: len(epochs(directory, 0)) > 1)
        # One process uploads the sweep and its trials.
        assert sum("--follow" in each.cmdline() for each in family(process)) == 1
        kill(family(process))
    assert [trial.state for trial in open_study(load_plan(directory)).trials] == [TrialState.RUNNING]
    flags = ("--resume", "--output-dir", "all", "--trials", "2")
    values = result(run([*SWEEP, *flags], tmp_path, timeout=SECONDS))
    assert (values["complete"], values["num_trials"]) == (2, 2)
    assert [epochs(directory, number) for number in range(2)] == [list(range(1, 11))] * 2
    assert [run.info.status for run in mlflow_runs(tmp_path).values()] == ["FINISHED"] * 3


@pytest.mark.nightly
def test_killed_worker_is_reported_and_ctrl_c_stops_the_others(tmp_path: Path) -> None:
    directory = tmp_path / "all"
    (tmp_path / "space.toml").write_text(SPACE.format(epochs=100))
    flags = ("--output-dir", "all", "--workers", "2", "--trials", "2")
    with sweeping("space.toml", *flags, cwd=tmp_path) as process:
        wait_until(lambda: all(len(epochs(directory, number)) > 1 for number in range(2)))
        worker = next(each for each in family(process) if "mlp_dist.sweep.worker" in each.cmdline())
        worker.kill()
        before = [len(epochs(directory, number)) for number in range(2)]
        wait_until(lambda: any(len(epochs(directory, n)) > before[n] + 1 for n in range(2)))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    log = directory / "worker-0.log"
    assert f"warning: worker 0 (pid {worker.pid}) was killed by SIGKILL; see {log}" in errors
    assert f"continue with: python -m mlp_dist.sweep --resume --output-dir {directory}" in errors
    # The killed worker's run has no end in MLflow.
    assert [run.info.status for run in mlflow_runs(tmp_path).values()].count("KILLED") == 2
