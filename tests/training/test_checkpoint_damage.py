"""Checkpoints after a full disk, a kill, or damage to a file."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.core.errors import CheckpointError
from mlp_dist.core.io import remove_left
from mlp_dist.training.checkpoint import (
    CHECKPOINT,
    METRICS,
    PREVIOUS,
    find_checkpoint,
    load_checkpoint,
    release,
    save_checkpoint,
)
from tests.helpers.checkpoints import CONFIG, of_epoch
from tests.helpers.disks import fill, small_disk


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with the checkpoints of epoch 1 and 2."""
    directory = tmp_path / "run"
    for number in (1, 2):
        save_checkpoint(of_epoch(number), directory)
    return directory


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    path.write_text("hello\n" * 100)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncated, "cannot be read: it is damaged, or not a checkpoint"), (Path.unlink, "is missing")],
)
def test_the_previous_checkpoint_replaces_a_damaged_one(
    damage: Callable[[Path], None], reason: str, saved: Path
) -> None:
    damage(saved / CHECKPOINT)
    checkpoint, message = load_checkpoint(saved)
    assert checkpoint.progress == "epoch 1"
    assert message == f"{saved / CHECKPOINT} {reason}; resuming from the checkpoint before it, of epoch 1"


def test_two_damaged_checkpoints_are_an_error(saved: Path) -> None:
    truncated(saved / CHECKPOINT)
    foreign(saved / PREVIOUS)
    with pytest.raises(CheckpointError, match=f"^{saved / PREVIOUS} cannot be read: it is damaged"):
        load_checkpoint(saved)


def test_a_damaged_checkpoint_is_set_aside(saved: Path) -> None:
    foreign(saved / CHECKPOINT)
    before = (saved / PREVIOUS).read_bytes()
    find_checkpoint(replace(CONFIG, output_dir=saved), resume="yes")
    release(saved)
    save_checkpoint(of_epoch(3), saved)
    assert (saved / "last.pt.damaged").read_text().startswith("hello")
    assert (saved / PREVIOUS).read_bytes() == before
    assert load_checkpoint(saved)[0].num_epochs == 3


# Failures while writing


def test_a_failing_save_keeps_the_old_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(
        CheckpointError,
        match=rf"^a checkpoint cannot be written in {saved}: .*file write failed; the last good one stays$",
    ):
        save_checkpoint(of_epoch(3), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("leaving", [0, 200_000, 1_200_000])
def test_a_full_disk_keeps_the_old_files(leaving: int, tmp_path: Path) -> None:
    weights = {"0.weight": torch.ones(100_000)}
    with small_disk(tmp_path / "disk", megabytes=6) as disk:
        for number in (1, 2):
            save_checkpoint(replace(of_epoch(number), model=weights, best=weights), disk)
        following = replace(of_epoch(3), model=weights, best={"0.weight": torch.ones(300_000)})
        filler = fill(disk, leaving=leaving)
        before = {name: (disk / name).read_bytes() for name in (CHECKPOINT, PREVIOUS, METRICS)}
        for _ in range(2):
            with pytest.raises(CheckpointError, match=rf"written in {disk}: .*No space left on device"):
                save_checkpoint(following, disk)
            assert {path.name: path.read_bytes() for path in disk.iterdir() if path != filler} == before
        filler.unlink()
        save_checkpoint(following, disk)
        assert load_checkpoint(disk)[0].num_epochs == 3


# Kills

CALLS = ("open", "fsync", "link", "replace", "unlink")


class Killed(BaseException):
    """Like a kill, it prevents all cleaning up: from then on every call fails."""


@contextmanager
def killed_before(call: int) -> Iterator[None]:
    """Raise Killed instead of the system call with this number, and of all later ones."""
    count = 0

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > call:
                raise Killed
            return original(*arguments, **named)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counting(getattr(os, name)))
        yield


@pytest.mark.parametrize("before", ["last.pt and previous.pt", "previous.pt"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint(before: str, tmp_path: Path) -> None:
    found = []
    for call in range(100):
        directory = tmp_path / str(call)
        save_checkpoint(of_epoch(1), directory)
        save_checkpoint(of_epoch(2), directory)
        if before == "previous.pt":
            (directory / CHECKPOINT).unlink()
        [old, _] = load_checkpoint(directory)
        try:
            with killed_before(call):
                save_checkpoint(of_epoch(3), directory)
        except Killed:
            checkpoint, damage = load_checkpoint(directory)
            found.append(checkpoint.num_epochs)
            assert checkpoint.num_epochs in (old.num_epochs, 3)
            assert bool(damage) == (before == "previous.pt" and checkpoint.num_epochs != 3)
            expected = of_epoch(checkpoint.num_epochs).model
            assert all(torch.equal(checkpoint.model[name], tensor) for name, tensor in expected.items())
            remove_left(directory)
            save_checkpoint(of_epoch(4), directory)
            assert {path.name for path in directory.iterdir()} == {CHECKPOINT, PREVIOUS, METRICS}
            assert load_checkpoint(directory)[0].num_epochs == 4
        else:
            break
    # Once the new checkpoint exists, it stays.
    assert found == sorted(found)
    assert len(set(found)) == 2
    assert len(found) >= 8
