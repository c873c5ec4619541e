"""Resuming after a damaged checkpoint, a full disk, or on another number of processes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.training.checkpoint import load_checkpoint
from tests.helpers.disks import enlarge, small_disk
from tests.helpers.launching import DATASET, launch, result, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store_at_hand")]

# Small steps, so that rounding does not switch ReLUs on or off.
FLAGS = (*DATASET, "--epochs", "3", "--schedule", "cosine", "--lr", "0.01", "--ema-decay", "0.9")

Weights = dict[str, dict[str, torch.Tensor]]


def weights(directory: Path) -> Weights:
    checkpoint, _ = load_checkpoint(directory)
    assert checkpoint.average is not None
    return {
        "last": checkpoint.model,
        "best": checkpoint.best,
        "average": checkpoint.average,
    }


def assert_close(found: Weights, expected: Weights, *, atol: float = 0) -> None:
    for which, state in expected.items():
        for name, tensor in state.items():
            torch.testing.assert_close(found[which][name], tensor, rtol=0, atol=atol)


def client(cwd: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{cwd}/mlflow.db")


def statuses(cwd: Path) -> list[str]:
    """Of all runs, the latest first."""
    experiments = [each.experiment_id for each in client(cwd).search_experiments()]
    runs = client(cwd).search_runs(experiments, order_by=["attributes.start_time DESC"])
    return [run.info.status for run in runs]


def logged_epochs(cwd: Path, run_id: str) -> list[int]:
    history = client(cwd).get_metric_history(run_id, "train/loss")
    return sorted(point.step for point in history)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the finished training `whole` and MLflow's store."""
    cwd = tmp_path_factory.mktemp("whole")
    values = result(train(*FLAGS, "--output-dir", "whole", cwd=cwd))
    assert logged_epochs(cwd, values["run_id"]) == [1, 2, 3]
    return cwd


@pytest.fixture
def copied(whole: Path) -> Callable[[str], Path]:
    """A function (name) -> a copy of the training's directory."""
    return lambda name: Path(shutil.copytree(whole / "whole", whole / name))


def test_epochs_of_a_schedule_may_not_change(whole: Path) -> None:
    more = train("--resume", "--output-dir", "whole", "--epochs", "5", cwd=whole)
    assert more.returncode == 2
    assert (
        "the run's cosine schedule ends with epoch 3, so 5 epochs would be another training: "
        "leave --epochs out to continue it"
    ) in more.stderr


def test_a_damaged_checkpoint_costs_one_epoch(whole: Path, copied: Callable[[str], Path]) -> None:
    directory = copied("damaged")
    last = directory / "last.pt"
    damaged = last.read_bytes()[:-1000]
    last.write_bytes(damaged)
    # Checkpoints within the epoch must not change the result.
    flags = ("--resume", "--output-dir", "damaged", "--checkpoint-every-steps", "5", "--epochs", "3")
    done = train(*flags, cwd=whole)
    values = result(done)
    [warning] = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warning == (
        "warning: damaged/last.pt cannot be read: it is damaged, or not a checkpoint; "
        "resuming from the checkpoint before it, of epoch 2"
    )
    assert "resumed after epoch 2 of 3" in done.stdout
    assert "epoch 3/3" in done.stdout
    assert "epoch 2/3" not in done.stdout
    assert (directory / "last.pt.damaged").read_bytes() == damaged
    assert_close(weights(directory), weights(whole / "whole"))
    assert logged_epochs(whole, values["run_id"]) == [1, 2, 3]
    assert set(statuses(whole)) == {"FINISHED"}


def test_another_number_of_processes_agrees_to_rounding(whole: Path, copied: Callable[[str], Path]) -> None:
    directory = copied("other")
    (directory / "previous.pt").replace(directory / "last.pt")
    done = launch(
        *("--resume", "--output-dir", "other"),
        cwd=whole,
        launcher=("--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
        ACCELERATE_USE_CPU="true",
    )
    values = result(done)
    assert values["num_processes"] == 2
    assert "resumed after epoch 2 of 3" in done.stdout
    [note] = [line for line in done.stdout.splitlines() if line.startswith("the run was on 1 CPU process")]
    assert note.endswith("up to rounding, not bit for bit")
    assert_close(weights(directory), weights(whole / "whole"), atol=1e-5)
    assert logged_epochs(whole, values["run_id"]) == [1, 2, 3]


def test_a_full_disk_stops_the_training_until_there_is_room(whole: Path, tmp_path: Path) -> None:
    # There is room for the first two checkpoints, of 1.6 and 4.8 MB, but not for a third.
    with small_disk(tmp_path / "disk", megabytes=9) as disk:
        done = train(*FLAGS, "--output-dir", "disk", cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        assert f"error: a checkpoint cannot be written in {disk}: " in done.stderr
        assert "No space left on device; the last good one stays" in done.stderr
        assert "Traceback" not in done.stderr
        assert statuses(tmp_path) == ["FAILED"]
        left = {path.name for path in disk.iterdir()}
        assert {name for name in left if name.startswith(".")} == set()
        assert {"last.pt", "previous.pt", "metrics.jsonl"} <= left
        checkpoint, damage = load_checkpoint(disk)
        assert (checkpoint.progress, damage) == ("epoch 1", "")

        enlarge(disk, megabytes=40)
        values = result(train("--resume", "--output-dir", "disk", cwd=tmp_path))
        assert_close(weights(disk), weights(whole / "whole"))
        assert statuses(tmp_path) == ["FINISHED"]
        assert logged_epochs(tmp_path, values["run_id"]) == [1, 2, 3]


def test_early_stopping_ends_a_training(tmp_path: Path) -> None:
    # Steps so small that no epoch improves on the first.
    flags = (*DATASET, "--lr", "1e-12", "--output-dir", "output")
    done = train(*flags, "--epochs", "50", "--patience", "2", cwd=tmp_path)
    values = result(done)
    assert (values["epochs"], values["best_epoch"]) == (3, 1)
    assert "stopped early: no better validation accuracy in 2 epochs" in done.stdout
    assert statuses(tmp_path) == ["FINISHED"]
    again = result(train(*flags, "--epochs", "1", cwd=tmp_path))
    assert again["run_id"] != values["run_id"]
    assert (again["epochs"], again["output_dir"]) == (1, values["output_dir"])
    assert statuses(tmp_path) == ["FINISHED", "FINISHED"]
