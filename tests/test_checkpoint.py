import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from mlp_dist.checkpoint import CHECKPOINT, METRICS, Checkpoint, load_checkpoint, save_checkpoint
from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.models import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.optim import build_optimizer

CONFIG = TrainConfig(
    recipe="small",
    dataset="digits",
    hidden_sizes=(8,),
    optimizer="adam",
    lr=0.01,
    batch_size=8,
    epochs=3,
    val_size=5,
    data_dir=Path("/data"),
    output_dir=Path("outputs/run"),
    run_name="run",
)


def trained(config: TrainConfig = CONFIG) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = build_model(ModelSpec((6, 8, 3)), generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(config, model.parameters())
    train(model, optimizer, steps=3)
    return model, optimizer


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, labels = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def record(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "val_accuracy": None,
        "timestamp_ms": 1_700_000_000_000 + epoch,
    }


@pytest.fixture
def checkpoint() -> Checkpoint:
    model, optimizer = trained()
    best = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    history = [record(1), record(2)]
    return Checkpoint(
        CONFIG, "run-id", model.state_dict(), optimizer.state_dict(), best, 1, history, "digest"
    )


@pytest.fixture
def saved(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    save_checkpoint(checkpoint, tmp_path / "run")
    return tmp_path / "run"


def assert_same_tensors(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_same_tensors(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, another in zip(one, other, strict=True):
            assert_same_tensors(each, another)
    else:
        assert one == other


# Round trip


@pytest.mark.parametrize("optimizer_name", ["adam", "sgd"])
def test_round_trip(tmp_path: Path, checkpoint: Checkpoint, optimizer_name: str) -> None:
    config = replace(CONFIG, optimizer=optimizer_name)
    model, optimizer = trained(config)
    checkpoint = replace(
        checkpoint, config=config, model=model.state_dict(), optimizer=optimizer.state_dict()
    )
    save_checkpoint(checkpoint, tmp_path / "run")
    read = load_checkpoint(tmp_path / "run")
    assert read.config == config
    assert read.num_epochs == 2
    assert_same_tensors({**vars(read)}, {**vars(checkpoint)})
    if optimizer_name == "adam":
        assert read.optimizer["state"][0]["step"] == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted((CHECKPOINT, METRICS))


def test_training_goes_on_as_if_it_had_not_stopped(saved: Path) -> None:
    read = load_checkpoint(saved)
    model = build_model(ModelSpec((6, 8, 3)))
    model.load_state_dict(read.model)
    optimizer = build_optimizer(read.config, model.parameters())
    optimizer.load_state_dict(read.optimizer)
    train(model, optimizer, steps=4)
    expected, expected_optimizer = trained()
    train(expected, expected_optimizer, steps=4)
    assert_same_tensors(model.state_dict(), expected.state_dict())


def test_metrics_are_a_line_an_epoch(saved: Path) -> None:
    lines = (saved / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(1), record(2)]


# What cannot be read


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_to_resume(tmp_path: Path, exists: bool) -> None:
    directory = tmp_path / "run"
    if exists:
        directory.mkdir()
    with pytest.raises(
        UsageError, match=f"{directory} holds no last.pt.* nothing to resume.*leave --resume out"
    ):
        load_checkpoint(directory)


def assert_refused(directory: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^{directory / CHECKPOINT} (cannot be read: .|is not a checkpoint)"
    ):
        load_checkpoint(directory)


def test_truncated_at_any_length(saved: Path) -> None:
    data = (saved / CHECKPOINT).read_bytes()
    lengths = {*range(40), *range(40, len(data), len(data) // 40), *range(len(data) - 40, len(data))}
    for length in lengths:
        (saved / CHECKPOINT).write_bytes(data[:length])
        assert_refused(saved)


class Evil:
    """What, unpickled as usual, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def packed(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 500,
        b"hello\n" * 100,
        "Grüße".encode() * 50,
        b"PK\x03\x04 no zip file",
        b"\x80\x02.",
        pickle.dumps({"model": 1}),
        pickle.dumps(CONFIG),
        packed({"weight": torch.zeros(3)}),
        packed(torch.zeros(3)),
        packed([1, 2]),
        packed(3),
        packed(None),
        packed({"format": "mlp_dist checkpoint 99"}),
        packed(torch.nn.Linear(2, 2)),
    ],
    ids=[
        "empty",
        "zeros",
        "text",
        "umlauts",
        "zip",
        "short pickle",
        "pickle",
        "pickled object",
        "state_dict",
        "tensor",
        "list",
        "number",
        "none",
        "newer",
        "module",
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(data)
    assert_refused(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("packing", ["pickle", "torch"])
def test_code_in_a_file_is_not_run(tmp_path: Path, packing: str) -> None:
    made = tmp_path / "made"
    value = {"format": "mlp_dist checkpoint 1", "model": Evil(made)}
    (tmp_path / CHECKPOINT).write_bytes(pickle.dumps(value) if packing == "pickle" else packed(value))
    assert_refused(tmp_path)
    assert not made.exists()


def test_a_directory_of_that_name(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).mkdir()
    assert_refused(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"config": json.dumps({**CONFIG.to_json(), "momentum": 0.9})},
        {"config": json.dumps({**CONFIG.to_json(), "dataset": "imagenet"})},
        {"config": "{"},
        {"config": None},
        {"extra": 1},
    ],
    ids=["other fields", "other values", "no JSON", "no text", "other parts"],
)
def test_a_checkpoint_of_another_version_is_named(saved: Path, change: dict[str, Any]) -> None:
    state = torch.load(saved / CHECKPOINT, weights_only=True)
    torch.save({**state, **change}, saved / CHECKPOINT)
    with pytest.raises(CheckpointError, match=f"{saved / CHECKPOINT}"):
        load_checkpoint(saved)


# Failures while writing


def save_half(state: object, path: Path) -> None:
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failure", ["disk full", "unserializable"])
def test_a_failing_save_leaves_the_one_before(
    saved: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    following = replace(checkpoint, history=[*checkpoint.history, record(3)])
    if failure == "disk full":
        monkeypatch.setattr(torch, "save", save_half)
    else:
        following.optimizer["state"]["generator"] = (value for value in range(3))
    with pytest.raises((OSError, TypeError), match=r"No space left on device|cannot pickle"):
        save_checkpoint(following, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert load_checkpoint(saved).num_epochs == 2


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
checkpoint = load_checkpoint(directory)
save_checkpoint(replace(checkpoint, best={{"first": checkpoint.model, "then": Killer()}}), directory)
"""
    killed = subprocess.run([sys.executable, "-c", script], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert (saved / CHECKPOINT).read_bytes() == before
