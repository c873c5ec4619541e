"""Checkpoints: what they hold, and what reads them."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mlp_dist.console.process import StopSignals
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.data.datasets import read_dataset
from mlp_dist.training.checkpoint import (
    CHECKPOINT,
    METRICS,
    PREVIOUS,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mlp_dist.training.trainer import Trainer
from tests.helpers.checkpoints import CONFIG, assert_same_tensors, of_epoch, record, within_epoch
from tests.helpers.launching import ROOT


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(of_epoch(2), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("checkpoint", [of_epoch(2), within_epoch(3, steps=4)], ids=["epoch", "step"])
def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path)
    read, damage = load_checkpoint(tmp_path)
    assert damage == ""
    assert_same_tensors({**vars(read)}, {**vars(checkpoint)})
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, METRICS}
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(1), record(2)]


def test_the_previous_checkpoint_is_kept(saved: Path) -> None:
    for number in (3, 4):
        before = (saved / CHECKPOINT).read_bytes()
        save_checkpoint(of_epoch(number), saved)
        assert (saved / PREVIOUS).read_bytes() == before
        assert load_checkpoint(saved)[0].num_epochs == number
        assert {path.name for path in saved.iterdir()} == {CHECKPOINT, METRICS, PREVIOUS}


def test_checkpoints_are_kept_where_hard_links_are_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    before = (saved / CHECKPOINT).read_bytes()
    save_checkpoint(of_epoch(3), saved)
    assert (saved / PREVIOUS).read_bytes() == before
    assert load_checkpoint(saved)[0].num_epochs == 3


def test_resumes_a_checkpoint_of_0_1_0(tmp_path: Path) -> None:
    """Written within an epoch, with Adam, a schedule, dropout and averaged weights."""
    shutil.copy(ROOT / "tests/helpers/data/checkpoint-0.1.0.pt", tmp_path / CHECKPOINT)
    checkpoint, damage = load_checkpoint(tmp_path)
    assert (checkpoint.progress, damage) == ("step 34 of epoch 2", "")
    config, accelerator = checkpoint.config, Accelerator(cpu=True)
    data = read_dataset("digits", tmp_path, image_size=config.image_size)
    assert checkpoint.data_digest == data.digest()
    resumed = Trainer(config, data, accelerator, tmp_path, checkpoint=checkpoint)
    uninterrupted = Trainer(config, data, accelerator, tmp_path)
    for trainer in (resumed, uninterrupted):
        while not trainer.state.is_over:
            trainer.state.end_epoch(trainer.train_epoch(StopSignals()) | trainer.evaluate())
    # Another machine may round differently.
    for found, expected in (
        (resumed.state.weights, uninterrupted.state.weights),
        (resumed.state.best, uninterrupted.state.best),
    ):
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
    assert resumed.state.history[1]["train_loss"] == pytest.approx(
        uninterrupted.state.history[1]["train_loss"], abs=1e-5
    )


# What cannot be read


@pytest.mark.parametrize("exists", [True, False])
def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path, exists: bool) -> None:
    directory = tmp_path / "run"
    if exists:
        directory.mkdir()
    with pytest.raises(
        UsageError, match=f"{directory} has no last.pt.* nothing to resume.*leave --resume out"
    ):
        load_checkpoint(directory)


def assert_refused(directory: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^{directory / CHECKPOINT} (cannot be read: .|is not a checkpoint)"
    ):
        load_checkpoint(directory)


def test_refuses_truncated_files(saved: Path) -> None:
    data = (saved / CHECKPOINT).read_bytes()
    for length in {0, 1, 4, len(data) // 2, len(data) - 40, len(data) - 1}:
        (saved / CHECKPOINT).write_bytes(data[:length])
        assert_refused(saved)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"hello\n" * 100,
        b"PK\x03\x04 no zip",
        pickle.dumps(CONFIG),
        None,
        {"format": "mlp_dist checkpoint 99"},
    ],
)
def test_refuses_other_files(tmp_path: Path, content: Any) -> None:
    path = tmp_path / CHECKPOINT
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert_refused(tmp_path)


class Evil:
    """Unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_runs_no_code_of_a_file(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"format": "mlp_dist checkpoint 1", "model": Evil(made)}, tmp_path / CHECKPOINT)
    assert_refused(tmp_path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"momentum": 0.9}}, r"mlp_dist \S+ does not know the configuration fields momentum"),
        ({"config": {"dataset": "imagenet"}}, "unknown data set 'imagenet'"),
        ({"extra": 1}, "unexpected keyword argument 'extra'"),
    ],
    ids=["another field", "another value", "another part"],
)
def test_names_the_version_of_a_checkpoint_that_does_not_fit(
    saved: Path, change: dict[str, Any], reason: str
) -> None:
    state = {**torch.load(saved / CHECKPOINT, weights_only=True), "version": "0.7.0", **change}
    if "config" in change:
        state["config"] = json.dumps({**CONFIG.to_json(), **change["config"]})
    torch.save(state, saved / CHECKPOINT)
    message = (
        rf"{saved / CHECKPOINT} was written by mlp_dist 0.7.0; mlp_dist \S+ cannot resume it: .*{reason}"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)
