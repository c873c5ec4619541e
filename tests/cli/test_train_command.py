"""Whole trainings as users start them. Those without a process of their own run in this one."""

import json
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch

from mlp_dist.config import OPTIONS, TrainConfig
from tests.helpers.calling import Call
from tests.helpers.comparing import client_of, logged, read_history, runs_of, saved_state, statuses
from tests.helpers.launching import QUICK, ROOT, Trained, printing, result, train
from tests.test_recipes import CHANGES

pytestmark = pytest.mark.slow
with_store = pytest.mark.usefixtures("store_at_hand")

TRAIN = "mlp_dist.train --recipe mnist-quick --dataset digits --output-dir output"
KEYS = {
    *("run_id", "recipe", "dataset", "num_parameters", "num_processes", "epochs", "train_loss", "output_dir"),
    *("train_accuracy", "val_accuracy", "test_accuracy", "train_seconds", "samples_per_second"),
}


@pytest.fixture
def store(tmp_path: Path) -> dict[str, str]:
    """The environment of trainings in this process: absolute, since MLflow caches relative stores."""
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}


def test_the_result_and_the_output_directory(trained: Trained) -> None:
    values = trained.result
    assert set(values) >= KEYS
    assert (values["num_parameters"], values["num_processes"], values["epochs"]) == (397510, 1, 5)
    assert values["test_accuracy"] > 0.9
    output = Path(values["output_dir"])
    assert {path.name for path in output.iterdir()} == {
        *("last.pt", "previous.pt", "metrics.jsonl", "bundle", "samples.npz", "predictions.npz"),
        *("figures", "tables", "config.json", "run.json", "uploaded.json"),
    }
    epochs = read_history(output)
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4, 5]
    kept = max(epochs, key=lambda record: (record["val_accuracy"], -record["epoch"]))
    assert kept["epoch"] == values["best_epoch"]
    for name in ("train_loss", "train_accuracy", "val_accuracy"):
        assert values[name] == kept[name]


@with_store
def test_a_tutorial_s_recipe(call: Call, store: dict[str, str], tmp_path: Path) -> None:
    """Without validation, tested after each epoch, with the losses of steps."""
    done = call(f"{TRAIN} --recipe mnist-500-4epochs --epochs 2 --log-every 5", **store)
    values, epochs = result(done), read_history(tmp_path / "output")
    run_id = values["run_id"]
    for record in epochs:
        assert (record["val_loss"], record["val_accuracy"]) == (None, None)
        metrics = f"test loss {record['test_loss']:.4f} accuracy {record['test_accuracy']:.2%}"
        assert re.search(rf"epoch {record['epoch']}/2 .* val -  {re.escape(metrics)}", done.stdout)
    accuracies = [(record["epoch"], record["test_accuracy"]) for record in epochs]
    assert logged(tmp_path, run_id, "test_accuracy") == accuracies
    assert values["test_accuracy"] == epochs[-1]["test_accuracy"]
    # 1,437 images in batches of 100 are 15 steps per epoch.
    steps = [(step["step"], step["loss"]) for record in epochs for step in record["steps"]]
    assert [step for step, _ in steps] == list(range(5, 31, 5))
    assert logged(tmp_path, run_id, "train/step_loss") == steps
    for step, loss in steps:
        assert f"  step {step}  loss {loss:.4f}\n" in done.stdout
    assert "no validation images: the last epoch's weights are kept" in done.stdout
    assert values["best_epoch"] == 2
    saved = saved_state(tmp_path / "output")
    assert all(torch.equal(saved["best"][name], tensor) for name, tensor in saved["model"].items())
    run = client_of(tmp_path).get_run(run_id)
    assert run.data.params["val_size"] == "0"
    assert "best_val_accuracy" not in run.data.metrics


def test_all_options_together(train_here: Call, tmp_path: Path) -> None:
    # On digits; float64 gradients exclude mixed precision.
    changes = {
        **CHANGES,
        "dataset": "digits",
        "gradient_dtype": "float32",
        "mixed_precision": "bf16",
        "epochs": 2,
    }
    set_too = {"output_dir": Path("output"), "data_dir": Path("here"), "experiment": "mine"}
    words = [word for name, value in (changes | set_too).items() for word in OPTIONS[name].words(value)]
    values = result(train_here(f"--recipe mnist-128-64-adam {shlex.join(words)}"))
    assert values["num_parameters"] == (20 * 20 + 1) * 20 + 21 * 10 + 11 * 10
    config = TrainConfig.from_json(json.loads(saved_state(tmp_path / "output")["config"]))
    assert {name: getattr(config, name) for name in changes} == changes
    assert (config.data_dir, config.experiment) == (tmp_path / "here", "mine")
    bundle = json.loads((tmp_path / "output/bundle/bundle.json").read_text())
    assert bundle["image"] == {"height": 20, "width": 20, "channels": 1, "mean": [-0.5], "std": [0.25]}


def test_list_recipes(call: Call) -> None:
    done = call("mlp_dist.train --list-recipes")
    assert done.returncode == 0
    assert "784-500-10" in done.stdout


@with_store
@pytest.mark.usefixtures("no_network")
def test_without_network_the_bundled_digits_are_used(call: Call, store: dict[str, str]) -> None:
    done = call("mlp_dist.train --epochs 1 --output-dir output", MLP_DIST_DATA="data", **store)
    assert result(done)["dataset"] == "digits"
    [line] = [line for line in done.stdout.splitlines() if line.startswith("Could not download")]
    assert line.startswith("Could not download MNIST: Error downloading train-images-idx3-ubyte.gz")
    assert line.endswith("training on scikit-learn's handwritten digits instead")


@pytest.mark.usefixtures("no_network")
def test_a_named_data_set_without_network_is_an_error(call: Call, tmp_path: Path) -> None:
    done = call("mlp_dist.train --dataset mnist --data-dir data")
    assert done.returncode == 1
    assert "error: Could not download MNIST" in done.stderr
    assert "--dataset digits" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_a_damaged_store_does_not_stop_a_training(call: Call, tmp_path: Path) -> None:
    (tmp_path / "damaged.db").write_text("not a database")
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/damaged.db"}
    done = train(*QUICK, "--epochs", "1", "--output-dir", "output", cwd=tmp_path, **store)
    assert result(done)["run_id"] is None
    assert done.stderr.count("warning") == 1
    assert f"MLflow at {store['MLFLOW_TRACKING_URI']} cannot take the run: " in done.stderr
    assert f"upload the rest with: python -m mlp_dist.sync {tmp_path}/output\n" in done.stderr
    again = call(f"{TRAIN} --epochs 1", **store)
    assert again.returncode == 2
    assert "holds a run that is not fully uploaded to MLflow: upload it with python -m" in again.stderr


@with_store
def test_a_loss_that_is_not_finite_ends_the_run(call: Call, store: dict[str, str], tmp_path: Path) -> None:
    done = call(f"{TRAIN} --epochs 3 --lr 1e30", **store)
    assert done.returncode == 1
    assert "the loss of step 2 (epoch 1) is not finite at learning rate 1e+30; try a smaller" in done.stderr
    assert "(the checkpoint of epoch 0 is kept in " in done.stderr
    [run] = runs_of(tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("the loss of step 2 (epoch 1) is not finite at learning rate")


@with_store
def test_a_crash_ends_the_run(
    call: Call, store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr("mlp_dist.training.report.write_outputs", broken)
    done = call(f"{TRAIN} --epochs 1", **store)
    assert done.returncode == 1
    assert "the disk is gone" in done.stderr
    assert statuses(tmp_path) == ["FAILED"]


@with_store
def test_an_interrupted_run_resumes_to_the_same_weights(
    call: Call, store: dict[str, str], tmp_path: Path
) -> None:
    start = f"{TRAIN} --batch-size 20"
    words = [sys.executable, str(ROOT / "launch/train.py"), *f"{start} --epochs 4000".split()[1:]]
    with printing(words, tmp_path, "epoch 2/") as process:
        process.send_signal(signal.SIGSTOP)
        for flag in ("", " --resume"):
            second = call(f"{TRAIN}{flag}", **store)
            assert second.returncode == 2
            assert "another training is running in output; choose another --output-dir" in second.stderr
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in output
    assert "resume with: accelerate launch -m mlp_dist.train --resume --output-dir" in output
    assert "Traceback" not in output
    epochs = len(read_history(tmp_path / "output"))
    assert 2 <= epochs < 4000
    assert statuses(tmp_path) == ["KILLED"]

    again = call(f"{start} --epochs 4000", **store)
    stopped = (
        rf"stopped after (epoch {epochs}|step \d+ of epoch {epochs + 1}) of 4000: continue it with --resume"
    )
    assert again.returncode == 2
    assert re.search(stopped, again.stderr)
    resume = "mlp_dist.train --resume --output-dir output"
    changed = call(f"{resume} --lr 0.2 --recipe mnist-500", **store)
    assert changed.returncode == 2
    assert "lr 0.1, not 0.2, recipe mnist-quick, not mnist-500" in changed.stderr
    fewer = call(f"{resume} --epochs 1", **store)
    assert f"has already trained {epochs} epochs" in fewer.stderr

    resumed = result(call(f"{resume} --epochs {epochs + 2}", **store))
    whole = result(call(f"{start} --epochs {epochs + 2} --output-dir whole", **store))
    for which in ("model", "best"):
        for name, tensor in saved_state(whole["output_dir"])[which].items():
            assert torch.equal(saved_state(resumed["output_dir"])[which][name], tensor)
    assert statuses(tmp_path) == ["FINISHED", "FINISHED"]
    steps = [step for step, _ in logged(tmp_path, resumed["run_id"], "train/loss")]
    assert sorted(steps) == list(range(1, epochs + 3))
