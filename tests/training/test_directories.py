from dataclasses import replace
from pathlib import Path

import pytest

from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import UsageError
from mlp_dist.tracking.run_dir import PLAN
from mlp_dist.training.checkpoint import (
    METRICS,
    Checkpoint,
    find_checkpoint,
    new_output_dir,
    release,
    resumed_config,
    save_checkpoint,
)

CONFIG = TrainConfig(
    recipe="small",
    dataset="digits",
    hidden_sizes=(8,),
    lr=0.1,
    batch_size=8,
    epochs=5,
    gradient_dtype="float64",
    output_dir=Path("outputs/run"),
)


def of_epoch(number: int, config: TrainConfig = CONFIG) -> Checkpoint:
    history = [{"epoch": epoch + 1} for epoch in range(number)]
    return Checkpoint(config, "run-id", {}, {}, {}, 0, history)


def test_fields_that_were_not_given_are_ignored() -> None:
    other = replace(CONFIG, lr=0.2, seed=7, epochs=1)
    assert resumed_config(of_epoch(2), other, set()) == CONFIG


def test_free_fields_may_change() -> None:
    config = replace(CONFIG, epochs=9, log_every=3, checkpoint_every_steps=4, data_dir=Path("/data"))
    given = {"epochs", "log_every", "checkpoint_every_steps", "data_dir"}
    assert resumed_config(of_epoch(2), config, given) == config


def test_resuming_brings_the_metrics_up_to_the_checkpoint(tmp_path: Path) -> None:
    """A process that was killed between writing the two leaves older metrics."""
    config = replace(CONFIG, output_dir=tmp_path)
    save_checkpoint(of_epoch(2, config), tmp_path)
    newest = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(newest.splitlines(keepends=True)[0])
    find_checkpoint(config, resume="yes")
    release(tmp_path)
    assert (tmp_path / METRICS).read_text() == newest


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (CONFIG, {"lr": 0.2}, "the run was started with lr 0.1, not 0.2: leave that out"),
        (CONFIG, {"epochs": 2}, "the run has already trained 3 epochs, more than the 2 requested"),
        (
            replace(CONFIG, schedule="cosine"),
            {"epochs": 9},
            "the run's cosine schedule ends with epoch 5, so 9 epochs would be another training",
        ),
    ],
)
def test_refuses_to_resume_as_another_training(
    config: TrainConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resumed_config(of_epoch(3, config), replace(config, **change), set(change))  # type: ignore[arg-type]


def test_refuses_the_directory_of_a_sweep(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(UsageError, match="holds a sweep; choose another --output-dir"):
        new_output_dir(replace(CONFIG, output_dir=tmp_path))


def test_long_run_names_are_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(CONFIG, output_dir=None, run_name="本/" * 125)
    first, second = new_output_dir(config), new_output_dir(config)
    assert first.parent == second.parent == tmp_path / "outputs"
    assert second.name == f"{first.name}-2"
    assert first.name == "本-" * 50
