"""What a full disk, a kill or a damaged file leaves of a training's checkpoints."""

import errno
import os
import signal
import subprocess
import sys
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
    load_checkpoint,
    save_checkpoint,
    set_aside_damaged,
)
from tests.helpers.checkpoints import of_epoch, within_epoch
from tests.helpers.disks import fill, small_disk


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with the checkpoints of epoch 1 and 2."""
    directory = tmp_path / "run"
    for number in (1, 2):
        save_checkpoint(of_epoch(number), directory)
    return directory


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    path.write_text("hello\n" * 100)


def of_a_newer_version(path: Path) -> None:
    torch.save({"format": "mlp_dist checkpoint 99"}, path)


# Damaged files

DAMAGES = [
    (truncated, "cannot be read: it is damaged, or not a checkpoint"),
    (foreign, "cannot be read: it is damaged, or not a checkpoint"),
    (of_a_newer_version, "is not a checkpoint of this package"),
    (Path.unlink, "is missing"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
@pytest.mark.parametrize("steps", [0, 4])
def test_the_one_before_takes_a_damaged_one_s_place(
    damage: Callable[[Path], None], words: str, steps: int, saved: Path
) -> None:
    if steps:
        save_checkpoint(within_epoch(3, steps=steps), saved)
        save_checkpoint(of_epoch(3), saved)
    damage(saved / CHECKPOINT)
    checkpoint, told = load_checkpoint(saved)
    progress = "step 4 of epoch 3" if steps else "epoch 1"
    assert checkpoint.progress == progress
    expected = f"{saved / CHECKPOINT} {words}; going on from the checkpoint before it, of {progress}"
    assert told == expected


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
@pytest.mark.parametrize("other", [truncated, foreign])
def test_where_both_are_damaged_that_is_an_error(
    damage: Callable[[Path], None], words: str, other: Callable[[Path], None], saved: Path
) -> None:
    damage(saved / CHECKPOINT)
    other(saved / PREVIOUS)
    with pytest.raises(CheckpointError, match=f"^{saved / PREVIOUS} cannot be read: it is damaged"):
        load_checkpoint(saved)


def test_where_there_was_none_before_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    save_checkpoint(of_epoch(1), tmp_path)
    truncated(tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=f"^{tmp_path / CHECKPOINT} cannot be read: it is damaged"):
        load_checkpoint(tmp_path)


def test_set_aside_the_damaged_one_is_kept_and_does_not_displace_the_whole_one(saved: Path) -> None:
    foreign(saved / CHECKPOINT)
    whole = (saved / PREVIOUS).read_bytes()
    set_aside_damaged(saved)
    assert (saved / "last.pt.damaged").read_text().startswith("hello")
    assert (saved / PREVIOUS).read_bytes() == whole
    assert load_checkpoint(saved)[0].num_epochs == 1
    set_aside_damaged(saved)
    save_checkpoint(of_epoch(3), saved)
    assert (saved / PREVIOUS).read_bytes() == whole
    assert load_checkpoint(saved)[0].num_epochs == 3
    assert names(saved) == {CHECKPOINT, PREVIOUS, METRICS, "last.pt.damaged"}


# Failures while writing


def save_half(state: object, file: Any) -> None:
    file.write(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save_as_torch_fails(state: object, file: Any) -> None:
    file.write(b"half of it")
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize(
    ("save", "words"),
    [(save_half, "No space left on device"), (save_as_torch_fails, "file write failed")],
)
def test_a_failing_save_leaves_the_one_before(
    save: Callable[..., None], words: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        CheckpointError,
        match=rf"^a checkpoint cannot be written in {saved}: .*{words}; the last good one stays$",
    ):
        save_checkpoint(of_epoch(3), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert load_checkpoint(saved)[0].num_epochs == 2


def test_what_cannot_be_saved_leaves_the_one_before(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    following = of_epoch(3)
    following.optimizer["state"]["generator"] = (value for value in range(3))
    with pytest.raises(TypeError, match="cannot pickle"):
        save_checkpoint(following, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_directory_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).mkdir()
    with pytest.raises(CheckpointError, match=f"a checkpoint cannot be written in {tmp_path}: "):
        save_checkpoint(of_epoch(1), tmp_path)
    assert names(tmp_path) == {CHECKPOINT}


@pytest.mark.parametrize("leaving", [0, 4096, 200_000, 800_000, 1_200_000])
def test_a_full_disk_is_told_and_the_one_before_stays(leaving: int, tmp_path: Path) -> None:
    weights = {"0.weight": torch.ones(100_000)}
    with small_disk(tmp_path / "disk", megabytes=6) as disk:
        for number in (1, 2):
            save_checkpoint(replace(of_epoch(number), model=weights, best=weights), disk)
        following = replace(of_epoch(3), model=weights, best={"0.weight": torch.ones(300_000)})
        filler = fill(disk, leaving=leaving)
        before = {name: (disk / name).read_bytes() for name in (CHECKPOINT, PREVIOUS, METRICS)}
        for _ in range(3):
            with pytest.raises(CheckpointError, match=rf"written in {disk}: .*No space left on device"):
                save_checkpoint(following, disk)
            assert {name: (disk / name).read_bytes() for name in before} == before
            assert names(disk) == {*before, "filler"}
            assert load_checkpoint(disk)[0].num_epochs == 2
        filler.unlink()
        save_checkpoint(following, disk)
        assert load_checkpoint(disk)[0].num_epochs == 3


# Kills

CALLS = ("open", "fsync", "link", "replace", "unlink")


class Killed(BaseException):
    """As a kill, it lets nothing be cleared up: from then on every call fails."""


@contextmanager
def killed_before(call: int) -> Iterator[None]:
    """Raise Killed in place of the system call of that number, and of all that follow it."""
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


@pytest.mark.parametrize("before", ["last.pt", "last.pt and previous.pt", "previous.pt"])
def test_a_kill_at_any_moment_leaves_the_old_one_or_the_new_one(before: str, tmp_path: Path) -> None:
    found = []
    for call in range(100):
        directory = tmp_path / str(call)
        save_checkpoint(of_epoch(1), directory)
        if before != "last.pt":
            save_checkpoint(of_epoch(2), directory)
        if before == "previous.pt":
            set_aside_damaged(directory)
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
            assert names(directory) - {"last.pt.damaged"} == {CHECKPOINT, PREVIOUS, METRICS}
            assert load_checkpoint(directory)[0].num_epochs == 4
        else:
            break
    # Once the new one is there it stays.
    assert found == sorted(found)
    assert len(set(found)) == 2
    assert len(found) >= 8


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_one_before(saved: Path) -> None:
    before = (saved / CHECKPOINT).read_bytes()
    script = f"""
import os, signal
from dataclasses import replace
from pathlib import Path
from mlp_dist.checkpoint import load_checkpoint, save_checkpoint

class Killer:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)

directory = Path({str(saved)!r})
checkpoint, _ = load_checkpoint(directory)
save_checkpoint(replace(checkpoint, best={{"first": checkpoint.model, "then": Killer()}}), directory)
"""
    killed = subprocess.run([sys.executable, "-c", script], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert (saved / CHECKPOINT).read_bytes() == before
    assert load_checkpoint(saved)[0].num_epochs == 2
