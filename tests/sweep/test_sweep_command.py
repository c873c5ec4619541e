"""Sweeps as people start, stop and go on with them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlp_dist.sweep.plan import load_plan
from mlp_dist.sweep.study import COMPLETE, FAILED, PRUNED, UNFINISHED, Result, Study
from tests.helpers.launching import ROOT, Trained, environment, result, run, train

pytestmark = pytest.mark.slow

SECONDS = 60
SWEEP = [sys.executable, str(ROOT / "launch/sweep.py")]

TINY = """
[fixed]
dataset = "digits"
epochs = 4

[space]
lr = [0.05, 0.1, 0.2, 1e-7, 1e30]
hidden_sizes = [[16], [32, 16]]
"""
SEED = 303
"""Of the first ten trials, draws a rate of 1e30 for trial 4 and of 1e-7 for trial 9, and for these alone."""

LONG = """
[fixed]
dataset = "digits"
epochs = 20

[space]
lr = { low = 0.02, high = 0.1, log = true }
batch_size = [20, 40]
"""


def sweep(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run([*SWEEP, *flags], cwd, timeout=SECONDS)


def results(directory: Path) -> list[Result]:
    return Study(load_plan(directory)).results()


def runs(directory: Path) -> dict[str, Any]:
    """MLflow's runs in the store beside the sweep, by their names."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{directory}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments)
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Ten trials by four workers, on a store that is not there yet."""
    directory = tmp_path_factory.mktemp("swept")
    (directory / "tiny.toml").write_text(TINY)
    flags = ("tiny.toml", "--trials", "10", "--workers", "4", "--seed", str(SEED), "--output-dir", "all")
    done = sweep(*flags, cwd=directory)
    logs = "".join(path.read_text() for path in (directory / "all").glob("worker-?.log"))
    assert "warning" not in done.stderr + logs
    values = result(done)
    assert f"\n  package: python -m serve.package --run-id {values['best_run_id']}\n" in done.stdout
    return Trained(directory, values)


def test_four_workers_share_the_trials_and_a_new_store(swept: Trained) -> None:
    values = swept.result
    found = results(swept.directory / "all")
    assert [each.number for each in found] == list(range(10))
    assert {each.state for each in found} <= {COMPLETE, PRUNED, FAILED}
    assert (found[9].state, found[9].epochs) == (PRUNED, 2)
    assert [each.number for each in found if each.state == FAILED] == [4]
    assert "is not finite at learning rate 1e+30" in found[4].facts["problem"]
    counts = {state: sum(each.state == state for each in found) for state in (COMPLETE, PRUNED, FAILED)}
    assert {name: values[name] for name in counts} == counts
    assert (values["num_trials"], values[UNFINISHED]) == (10, 0)
    best = max((each for each in found if each.state == COMPLETE), key=lambda each: each.value or 0)
    assert (values["best_value"], values["best_trial"]) == (best.value, best.number)
    assert values["best_run_id"] == best.facts["run_id"]


def test_the_trials_are_nested_in_the_sweep_s_run(swept: Trained) -> None:
    found = runs(swept.directory)
    parent = found.pop("sweep mnist: lr, hidden_sizes")
    assert (parent.info.run_id, parent.info.status) == (swept.result["run_id"], "FINISHED")
    assert parent.data.params["space.lr"] == "0.05 or 0.1 or 0.2 or 1e-07 or 1e+30"
    assert swept.result["command"] in parent.data.tags["mlflow.note.content"]
    assert parent.data.metrics["best_trial_val_accuracy"] == swept.result["best_value"]
    statuses = {COMPLETE: "FINISHED", PRUNED: "KILLED", FAILED: "FAILED"}
    trials = results(swept.directory / "all")
    assert len(found) == len(trials)
    for trial in trials:
        (name,) = (name for name in found if name.startswith(f"trial {trial.number} "))
        run = found[name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == statuses[trial.state]
        told = f"after epoch {trial.epochs}" if trial.state == PRUNED else None
        assert run.data.tags.get("pruned") == told
        if trial.state == COMPLETE:
            assert run.data.metrics["best_val_accuracy"] == trial.value


def test_the_sweep_s_run_has_a_picture_and_a_table_of_the_trials(swept: Trained) -> None:
    import mlflow

    uri = f"sqlite:///{swept.directory}/mlflow.db"
    names = {file.path for file in mlflow.MlflowClient(uri).list_artifacts(swept.result["run_id"], "figures")}
    assert names == {"figures/parallel_coordinates.png"}
    table = json.loads((swept.directory / "all/tables/trials.json").read_text())
    assert table["columns"] == [
        *("trial", "state", "val_accuracy", "epochs", "test_accuracy"),
        *("lr", "hidden_sizes"),
    ]
    assert [row[0] for row in table["data"]] == list(range(10))


def test_the_command_it_ends_with_trains_the_best_again(swept: Trained) -> None:
    words = shlex.split(swept.result["command"])
    assert words[:3] == ["accelerate", "launch", "launch/train.py"]
    again = result(train(*words[3:], cwd=swept.directory))
    assert again["val_accuracy"] == pytest.approx(swept.result["best_value"], abs=0.02)


@contextmanager
def sweeping(*flags: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
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
        for each in family(process):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        main = psutil.Process(process.pid)
        return [main, *main.children(recursive=True)]
    return []


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def epochs(directory: Path, number: int) -> int:
    with suppress(FileNotFoundError):
        return len((directory / f"trial-{number:04}/metrics.jsonl").read_text().splitlines())
    return 0


def test_what_kills_workers_or_all_costs_no_epoch(tmp_path: Path) -> None:
    directory = tmp_path / "all"
    (tmp_path / "long.toml").write_text(LONG)
    flags = ("--output-dir", "all", "--workers", "2", "--trials", "2")
    with sweeping("long.toml", *flags, cwd=tmp_path) as process:
        wait(lambda: min(epochs(directory, 0), epochs(directory, 1)) > 1)
        worker = next(each for each in family(process) if "mlp_dist.sweep.worker" in each.cmdline())
        worker.kill()
        before = [epochs(directory, number) for number in range(2)]
        wait(lambda: max(epochs(directory, n) - before[n] for n in range(2)) > 1)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in said
    log = directory / "worker-0.log"
    assert f"warning: worker 0 (pid {worker.pid}) was killed by SIGKILL; {log} tells more" in said
    assert f"go on with: python launch/sweep.py --resume --output-dir {directory}" in said
    # Of the killed worker's trial MLflow may know nothing, and nobody has told it that it ended.
    assert [run.info.status for run in runs(tmp_path).values()].count("KILLED") == 2

    before = [epochs(directory, number) for number in range(2)]
    with sweeping("--resume", *flags, cwd=tmp_path) as process:
        wait(lambda: min(epochs(directory, n) - before[n] for n in range(2)) > 1)
        everyone = family(process)
        for each in everyone:
            each.kill()
        psutil.wait_procs(everyone)
    assert [each.state for each in results(directory)] == [UNFINISHED] * 2

    values = result(sweep("--resume", "--output-dir", "all", "--trials", "3", cwd=tmp_path))
    assert (values[COMPLETE], values["num_trials"]) == (3, 3)
    for number in range(3):
        told = (directory / f"trial-{number:04}/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in told] == list(range(1, 21))
    assert [run.info.status for run in runs(tmp_path).values()] == ["FINISHED"] * 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "what is to be tried? name a search space: python launch/sweep.py SPACE.toml"),
        (["none.toml"], "the search space none.toml cannot be read"),
        (["none.toml", "--worker", "2"], "unknown argument '--worker'; did you mean --workers?"),
        (["none.toml", "--workers", "0"], "workers is 0; it must be 1 or more"),
        (["--resume"], "there is no sweep under"),
    ],
    ids=str,
)
def test_a_mistake_is_told_without_a_traceback(flags: list[str], message: str, tmp_path: Path) -> None:
    done = sweep(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
