"""Recipes as people start them: every field can be changed, every epoch is told whole."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.config import TrainConfig
from tests.helpers.launching import DATASET, Trained, result, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store_at_hand")]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, str]:
    """A tutorial's recipe on the digits, and what it said."""
    directory = tmp_path_factory.mktemp("tutorial")
    flags = ("--recipe", "mnist-500-4epochs", *DATASET, "--epochs", "3", "--log-every", "5")
    done = train(*flags, cwd=directory)
    return Trained(directory, result(done)), done.stdout


def records(trained: Trained) -> list[dict[str, Any]]:
    lines = (Path(trained.result["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def history(trained: Trained, metric: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{trained.directory}/mlflow.db")
    points = client.get_metric_history(trained.result["run_id"], metric)
    return [(point.step, point.value) for point in points]


def test_every_epoch_reports_on_the_test_images(tutorial: tuple[Trained, str]) -> None:
    trained, said = tutorial
    told = records(trained)
    assert [record["epoch"] for record in told] == [1, 2, 3]
    for record in told:
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert record[name] > 0
        assert (record["val_loss"], record["val_accuracy"]) == (None, None)
        figures = f"test loss {record['test_loss']:.4f} accuracy {record['test_accuracy']:.2%}"
        assert re.search(rf"epoch {record['epoch']}/3 .* val -  {re.escape(figures)}", said)
    assert history(trained, "test/accuracy") == [(n, told[n - 1]["test_accuracy"]) for n in (1, 2, 3)]
    assert history(trained, "test_accuracy") == [(0, told[-1]["test_accuracy"])]
    assert trained.result["test_accuracy"] == told[-1]["test_accuracy"]


def test_the_last_epoch_is_kept_and_the_run_says_so(tutorial: tuple[Trained, str]) -> None:
    trained, said = tutorial
    assert "no validation images: the last epoch's weights are kept" in said
    assert trained.result["best_epoch"] == 3
    state = torch.load(Path(trained.result["output_dir"]) / "last.pt", weights_only=True)
    assert all(torch.equal(state["best"][name], tensor) for name, tensor in state["model"].items())
    from mlflow.tracking import MlflowClient

    run = MlflowClient(f"sqlite:///{trained.directory}/mlflow.db").get_run(trained.result["run_id"])
    assert run.data.params["kept"] == "last epoch, none was chosen"
    assert run.data.params["val_size"] == "0"
    assert "best_val_accuracy" not in run.data.metrics


def test_losses_of_steps_are_told_and_kept(tutorial: tuple[Trained, str]) -> None:
    trained, said = tutorial
    # 1437 images in batches of 100 are 15 steps an epoch.
    steps = [step for record in records(trained) for step in record["steps"]]
    assert [step["step"] for step in steps] == list(range(5, 46, 5))
    assert history(trained, "train/step_loss") == [(step["step"], step["loss"]) for step in steps]
    for step in steps:
        assert f"  step {step['step']}  loss {step['loss']:.4f}\n" in said


CHANGES = {
    "hidden_sizes": ("20,10", [20, 10]),
    "model": ("layers", "layers"),
    "initialization": ("normal_0.1", "normal_0.1"),
    "image_size": ("14", 14),
    "normalize": ("0.4,0.2", [0.4, 0.2]),
    "optimizer": ("scratch-sgd", "scratch-sgd"),
    "lr": ("0.02", 0.02),
    "batch_size": ("50", 50),
    "epochs": ("2", 2),
    "seed": ("7", 7),
    "val_size": ("30", 30),
    "mixed_precision": ("bf16", "bf16"),
    "dataset": ("digits", "digits"),
    "experiment": ("mine", "mine"),
    "run_name": ("named", "named"),
    "log_every": ("3", 3),
    "schedule": ("one-cycle", "one-cycle"),
    "warmup_epochs": ("0.5", 0.5),
    "accumulation_steps": ("2", 2),
    "clip_norm": ("0.9", 0.9),
    "weight_decay": ("0.001", 0.001),
    "label_smoothing": ("0.1", 0.1),
    "dropout": ("0.25", 0.25),
    "augment_shift": ("1", 1),
    "deform": ("0.5", 0.5),
    "adversarial": ("0.01", 0.01),
    "matmul_precision": ("high", "high"),
    "ema_decay": ("0.5", 0.5),
    "patience": ("4", 4),
    "checkpoint_every_steps": ("7", 7),
}
"""Field -> what the flag takes, and what the run's configuration says then."""


def test_any_field_of_a_recipe_can_be_changed(tmp_path: Path) -> None:
    elsewhere = {"recipe", "fallback_dataset", "data_dir", "output_dir", "skip_bad_images"}
    # These two exclude each other, and mixed precision one of them.
    elsewhere |= {"gradient_dtype", "compile"}
    assert {field.name for field in fields(TrainConfig)} == {*CHANGES, *elsewhere}
    flags = [part for name, (text, _) in CHANGES.items() for part in (f"--{name.replace('_', '-')}", text)]
    where = ["--data-dir", "here", "--output-dir", "there", "--skip-bad-images"]
    values = result(train("--recipe", "mnist-128-64-adam", *flags, *where, cwd=tmp_path))
    assert values["num_parameters"] == (14 * 14 + 1) * 20 + 21 * 10 + 11 * 10
    assert values["output_dir"] == str(tmp_path / "there")
    state = torch.load(tmp_path / "there/last.pt", weights_only=True)
    config = json.loads(state["config"])
    assert {name: config[name] for name in CHANGES} == {name: value for name, (_, value) in CHANGES.items()}
    assert (config["data_dir"], config["skip_bad_images"]) == (str(tmp_path / "here"), True)
    bundle = json.loads((tmp_path / "there/bundle/bundle.json").read_text())
    assert bundle["image"] == {"height": 14, "width": 14, "channels": 1, "mean": [0.4], "std": [0.2]}


def test_normalization_by_the_data_and_no_hidden_layer(tmp_path: Path) -> None:
    flags = ("--recipe", "mnist-500", *DATASET, "--normalize", "data", "--hidden-sizes", "none")
    values = result(train(*flags, "--output-dir", "run", cwd=tmp_path))
    assert values["num_parameters"] == 7850
    bundle = json.loads((tmp_path / "run/bundle/bundle.json").read_text())
    assert (bundle["image"]["mean"], bundle["image"]["std"]) == ([0.3085], [0.3484])
