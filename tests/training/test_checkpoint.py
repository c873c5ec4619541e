import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mlp_dist.console.processes import StopSignals
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.datasets import read_dataset
from mlp_dist.training.checkpoint import (
    CHECKPOINT,
    METRICS,
    PREVIOUS,
    Checkpoint,
    capture,
    load_checkpoint,
    save_checkpoint,
)
from mlp_dist.training.optim import build_optimizer
from mlp_dist.training.trainer import Trainer
from tests.helpers.checkpoints import CONFIG, of_epoch, record, train, trained, within_epoch
from tests.helpers.variants import take_step


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(of_epoch(2), tmp_path / "run")
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
def test_round_trip(tmp_path: Path, optimizer_name: str) -> None:
    config = replace(CONFIG, optimizer=optimizer_name)
    model, optimizer = trained(config)
    checkpoint = replace(
        of_epoch(2), config=config, model=model.state_dict(), optimizer=optimizer.state_dict()
    )
    save_checkpoint(checkpoint, tmp_path / "run")
    read, damage = load_checkpoint(tmp_path / "run")
    assert damage == ""
    assert read.config == config
    assert read.num_epochs == 2
    assert_same_tensors({**vars(read)}, {**vars(checkpoint)})
    if optimizer_name == "adam":
        assert read.optimizer["state"][0]["step"] == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted((CHECKPOINT, METRICS))


def test_round_trip_within_an_epoch(tmp_path: Path) -> None:
    checkpoint = within_epoch(3, steps=4)
    save_checkpoint(checkpoint, tmp_path)
    assert_same_tensors({**vars(load_checkpoint(tmp_path)[0])}, {**vars(checkpoint)})


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(
        replace(of_epoch(2), model=model.state_dict(), optimizer=optimizer.state_dict()), tmp_path
    )
    read, _ = load_checkpoint(tmp_path)
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


def test_the_one_before_is_kept(saved: Path) -> None:
    for number in (3, 4, 5):
        before = (saved / CHECKPOINT).read_bytes()
        save_checkpoint(of_epoch(number), saved)
        assert (saved / PREVIOUS).read_bytes() == before
        assert load_checkpoint(saved)[0].num_epochs == number
        assert sorted(path.name for path in saved.iterdir()) == sorted((CHECKPOINT, METRICS, PREVIOUS))


@pytest.mark.parametrize(
    ("checkpoint", "progress", "has_begun", "is_over"),
    [
        (of_epoch(0), "epoch 0", False, False),
        (within_epoch(1, steps=4), "step 4 of epoch 1", True, False),
        (of_epoch(3), "epoch 3", True, False),
        (within_epoch(4, steps=12), "step 12 of epoch 4", True, False),
        (of_epoch(9), "epoch 9", True, True),
        (replace(of_epoch(5), config=replace(CONFIG, patience=2), kept=2), "epoch 5", True, True),
        (replace(of_epoch(5), config=replace(CONFIG, patience=2), kept=3), "epoch 5", True, False),
    ],
)
def test_how_far_it_has_come(checkpoint: Checkpoint, progress: str, has_begun: bool, is_over: bool) -> None:
    assert checkpoint.progress == progress
    assert checkpoint.has_begun == has_begun
    assert checkpoint.is_over == is_over


def test_a_trainer_takes_up_what_another_has_saved(tmp_path: Path) -> None:
    config = replace(
        CONFIG, val_size=120, batch_size=100, schedule="cosine", ema_decay=0.9, checkpoint_every_steps=3
    )
    data, accelerator = read_dataset("digits", tmp_path), Accelerator(cpu=True)
    one = Trainer(config, data, accelerator, tmp_path, workers="1 CPU process")
    one.run_key = "key"
    one.keep(one.train_epoch(StopSignals()) | one.evaluate())
    for step, batch in zip((14, 15), torch.arange(200).split(100), strict=True):
        one.epoch_steps.add(take_step(one, step, batch))
    one.epoch_steps.seconds = 1.5
    expected = capture(one)
    save_checkpoint(expected, tmp_path)
    read, _ = load_checkpoint(tmp_path)
    other = Trainer(config, data, accelerator, tmp_path, checkpoint=read, workers="1 CPU process")
    assert (other.saved, other.run_key) == ("step 2 of epoch 2", "key")
    assert_same_tensors({**vars(capture(other))}, {**vars(expected)})


def test_what_was_captured_does_not_change_with_the_training(tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer="sgd", val_size=120, batch_size=100, ema_decay=0.9)
    made = Trainer(config, read_dataset("digits", tmp_path), Accelerator(cpu=True), tmp_path)
    take_step(made, 0, torch.arange(100))
    checkpoint = capture(made)
    assert checkpoint.average is not None
    before = [
        tensor.clone() for tensor in (*checkpoint.model.values(), *checkpoint.average["average"].values())
    ]
    take_step(made, 1, torch.arange(100))
    after = [*checkpoint.model.values(), *checkpoint.average["average"].values()]
    assert_same_tensors(after, before)


def test_a_checkpoint_without_the_fields_of_today_is_read(saved: Path) -> None:
    state = torch.load(saved / CHECKPOINT, weights_only=True)
    for name in ("average", "scaler", "epoch_steps", "workers"):
        del state[name]
    of_today = (
        *("schedule", "warmup_epochs", "accumulation_steps", "clip_norm", "weight_decay"),
        *("label_smoothing", "dropout", "augment_shift", "ema_decay", "patience", "gradient_dtype"),
        *("compile", "checkpoint_every_steps", "matmul_precision", "deform", "adversarial"),
    )
    config = json.loads(state["config"])
    state["config"] = json.dumps({name: value for name, value in config.items() if name not in of_today})
    torch.save(state, saved / CHECKPOINT)
    read, damage = load_checkpoint(saved)
    assert damage == ""
    assert_same_tensors({**vars(read)}, {**vars(of_epoch(2))})


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
