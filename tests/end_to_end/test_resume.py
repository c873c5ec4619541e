"""Resuming after a damaged checkpoint and a full disk, and early stopping."""

import shutil
from pathlib import Path

import pytest
import torch

from mlp_dist.training.checkpoint import load_checkpoint
from tests.helpers.calling import Call
from tests.helpers.comparing import logged, statuses
from tests.helpers.disks import enlarge, small_disk
from tests.helpers.launching import result

pytestmark = pytest.mark.slow

FLAGS = "--recipe mnist-quick --dataset digits --epochs 3 --schedule cosine --lr 0.01 --ema-decay 0.9"

Weights = dict[str, dict[str, torch.Tensor]]


def weights(directory: Path) -> Weights:
    checkpoint, _ = load_checkpoint(directory)
    assert checkpoint.average is not None
    return {
        "last": checkpoint.model,
        "best": checkpoint.best,
        "average": checkpoint.average,
    }


def assert_equal(found: Weights, expected: Weights) -> None:
    for which, state in expected.items():
        assert all(torch.equal(found[which][name], tensor) for name, tensor in state.items()), which


def logged_epochs(cwd: Path, run_id: str) -> list[int]:
    return [step for step, _ in logged(cwd, run_id)]


@pytest.fixture
def whole(train_here: Call, tmp_path: Path) -> Path:
    """The directory of a finished training, beside MLflow's store."""
    values = result(train_here(f"{FLAGS} --output-dir whole"))
    assert logged_epochs(tmp_path, values["run_id"]) == [1, 2, 3]
    return tmp_path / "whole"


def test_a_damaged_checkpoint_costs_one_epoch(whole: Path, train_here: Call, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "damaged")
    last = directory / "last.pt"
    damaged = last.read_bytes()[:-1000]
    last.write_bytes(damaged)
    # Checkpoints within the epoch must not change the result.
    done = train_here("--resume --output-dir damaged --checkpoint-every-steps 5 --epochs 3")
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
    assert_equal(weights(directory), weights(whole))
    assert logged_epochs(tmp_path, values["run_id"]) == [1, 2, 3]
    assert statuses(tmp_path) == ["FINISHED"]


def test_a_full_disk_stops_the_training_until_there_is_room(
    whole: Path, train_here: Call, tmp_path: Path
) -> None:
    # There is room for the first two checkpoints, of 1.6 and 4.8 MB, but not for a third.
    with small_disk(tmp_path / "disk", megabytes=9) as disk:
        done = train_here(f"{FLAGS} --output-dir disk")
        assert done.returncode == 1, done.stderr
        assert f"error: a checkpoint cannot be written in {disk}: " in done.stderr
        assert "No space left on device; the last good one stays" in done.stderr
        assert "Traceback" not in done.stderr
        assert statuses(tmp_path) == ["FAILED", "FINISHED"]
        left = {path.name for path in disk.iterdir()}
        assert {name for name in left if name.startswith(".")} == set()
        assert {"last.pt", "previous.pt", "metrics.jsonl"} <= left
        checkpoint, damage = load_checkpoint(disk)
        assert (checkpoint.progress, damage) == ("epoch 1", "")

        enlarge(disk, megabytes=40)
        values = result(train_here("--resume --output-dir disk"))
        assert_equal(weights(disk), weights(whole))
        assert statuses(tmp_path) == ["FINISHED", "FINISHED"]
        assert logged_epochs(tmp_path, values["run_id"]) == [1, 2, 3]


def test_early_stopping_ends_a_training(train_here: Call, tmp_path: Path) -> None:
    # Steps so small that no epoch improves on the first.
    flags = "--recipe mnist-quick --dataset digits --lr 1e-12 --output-dir output"
    done = train_here(f"{flags} --epochs 50 --patience 2")
    values = result(done)
    assert (values["epochs"], values["best_epoch"]) == (3, 1)
    assert "stopped early: no better validation accuracy in 2 epochs" in done.stdout
    assert statuses(tmp_path) == ["FINISHED"]
    again = result(train_here(f"{flags} --epochs 1"))
    assert again["run_id"] != values["run_id"]
    assert (again["epochs"], again["output_dir"]) == (1, values["output_dir"])
    assert statuses(tmp_path) == ["FINISHED", "FINISHED"]
