import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.launching import DATASET, ROOT, Trained, environment, result, run_impatient, train

pytestmark = pytest.mark.slow
with_store = pytest.mark.usefixtures("store_at_hand")

KEYS = {
    "run_id",
    "recipe",
    "dataset",
    "num_parameters",
    "num_processes",
    "epochs",
    "train_loss",
    "train_accuracy",
    "val_accuracy",
    "test_accuracy",
    "train_seconds",
    "samples_per_second",
    "output_dir",
}


def weights(output_dir: str | Path, which: str = "model") -> dict[str, torch.Tensor]:
    state: dict[str, Any] = torch.load(Path(output_dir) / "last.pt", weights_only=True)
    return state[which]


def metrics(output_dir: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(output_dir) / "metrics.jsonl").read_text().splitlines()]


def run_of(cwd: Path, run_id: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{cwd}/mlflow.db").get_run(run_id)


def test_the_last_line_and_the_output_directory(trained: Trained) -> None:
    values = trained.result
    assert set(values) >= KEYS
    assert values["num_parameters"] == 397510
    assert values["num_processes"] == 1
    assert values["train_seconds"] > 0
    assert values["samples_per_second"] > 0
    assert values["test_accuracy"] > 0.9
    output = Path(values["output_dir"])
    assert {path.name for path in output.iterdir()} == {
        *("last.pt", "previous.pt", "metrics.jsonl", "bundle"),
        *("checkpoint", "figures", "tables", "config.json", "run.json", "sent.json"),
    }
    records = metrics(output)
    assert [record["epoch"] for record in records] == list(range(1, values["epochs"] + 1))
    assert all(record["evaluate_seconds"] > 0 for record in records)
    kept = max(records, key=lambda record: (record["val_accuracy"], -record["epoch"]))
    assert kept["epoch"] == values["best_epoch"]
    for name in ("train_loss", "train_accuracy", "val_accuracy"):
        assert values[name] == kept[name]


@with_store
def test_the_default_directory_is_new_for_each_run(tmp_path: Path) -> None:
    directories = [
        result(train(*DATASET, "--epochs", "1", "--run-name", "same", cwd=tmp_path))["output_dir"]
        for _ in range(2)
    ]
    assert [Path(directory).relative_to(tmp_path) for directory in directories] == [
        Path("outputs/same"),
        Path("outputs/same-2"),
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipe", "mnsit"], ["unknown recipe 'mnsit'", "did you mean mnist?", "there are: mnist"]),
        (
            ["--dataset", "minst"],
            ["unknown data set 'minst'", "did you mean mnist?", "fashion_mnist", "folder:DIR"],
        ),
        (
            ["--epoch", "3"],
            ["unknown argument '--epoch'", "did you mean --epochs?"],
        ),
        (["--epochs", "many"], ["--epochs", "invalid int value: 'many'"]),
        (["--epochs", "0"], ["epochs is 0", "1 or more"]),
        (["--lr", "-1"], ["lr is -1.0", "above 0"]),
        (["--lr", "nan"], ["lr is nan", "above 0"]),
        (["--batch-size", "0"], ["batch-size is 0"]),
        (["--val-size", "-5"], ["val-size is -5"]),
        (["--mixed-precision", "fp8"], ["invalid choice: 'fp8'", "bf16"]),
        (["--mixed-precision", "fp16"], ["fp16 needs a GPU", "bf16"]),
        (["--resume", "auto"], ["resume is auto; it needs --output-dir"]),
        (["--resume", "maybe"], ["--resume: invalid choice: 'maybe'"]),
        (["--dropout", "1"], ["dropout is 1.0; it must be from 0 to below 1"]),
        (["--schedule", "cosin"], ["--schedule: invalid choice: 'cosin'; did you mean cosine?", "one-cycle"]),
        (
            ["--gradient-dtype", "float64", "--compile"],
            ["gradient-dtype is float64; it must be float32 with mixed"],
        ),
        (
            [*DATASET, "--val-size", "1437"],
            ["val-size 1437 leaves nothing to train on", "1437 training images"],
        ),
        (["--resume"], ["no run under", "--output-dir"]),
        (["--resume", "--output-dir", "nowhere"], ["nowhere holds no last.pt", "nothing to resume"]),
        (["--dataset", "folder:"], ["unknown data set 'folder:'", "folder:DIR"]),
        (["--lr", "1e100"], ["lr is 1e+100"]),
        (["--hidden-sizes", "big"], ["--hidden-sizes: 'big' is not widths as 500 or 256,64"]),
        (["--hidden-sizes", "0"], ["hidden sizes is (0,)", "1 or more"]),
        (["--normalize", "0.5"], ["--normalize: '0.5' is not MEAN,STD as 0.5,0.5, nor none or data"]),
        (["--normalize", "0.5,0"], ["normalize is 0.5,0; it must be a mean of at most"]),
        (["--model", "cnn"], ["--model: invalid choice: 'cnn'", "module", "tensor", "layers"]),
        (["--optimizer", "lion"], ["--optimizer: invalid choice: 'lion'", "scratch-sgd"]),
        (["--image-size", "0"], ["image-size is 0; it must be from 1 to 4096 pixels"]),
        (["--log-every", "-1"], ["log-every is -1; it must be 0 or more"]),
        (["--dataset", "folder:nowhere"], ["nowhere is not a directory"]),
    ],
)
def test_a_mistake_is_told_without_a_traceback(flags: list[str], words: list[str], tmp_path: Path) -> None:
    done = train(*flags, cwd=tmp_path)
    expected = 1 if "folder:nowhere" in flags else 2
    assert done.returncode == expected, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_compiling_needs_a_compiler(tmp_path: Path) -> None:
    done = train(*DATASET, "--compile", cwd=tmp_path, CXX="no-such-compiler")
    assert done.returncode == 2
    assert "compile needs a C++ compiler, and there is no no-such-compiler: install one" in done.stderr


def test_list_recipes(tmp_path: Path) -> None:
    done = train("--list-recipes", cwd=tmp_path)
    assert done.returncode == 0
    assert "784-500-10" in done.stdout
    assert "397,510" in done.stdout


def dead_proxy() -> dict[str, str]:
    """A network that refuses every connection."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    return {"http_proxy": address, "https_proxy": address, "no_proxy": ""}


@with_store
def test_without_network_the_bundled_digits_are_used(tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--data-dir", str(tmp_path / "data"))
    done = run_impatient("launch/train.py", *flags, cwd=tmp_path, **dead_proxy())
    values = result(done)
    assert values["dataset"] == "digits"
    [line] = [line for line in done.stdout.splitlines() if "Could not download" in line]
    assert line.startswith("Could not download MNIST: train-images-idx3-ubyte.gz")
    assert line.endswith("training on scikit-learn's handwritten digits instead")


def test_a_named_data_set_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    flags = ("--dataset", "mnist", "--data-dir", str(tmp_path / "data"))
    done = run_impatient("launch/train.py", *flags, cwd=tmp_path, **dead_proxy())
    assert done.returncode == 1
    assert "Could not download MNIST" in done.stderr
    assert "--dataset digits" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("variable", [True, False])
@with_store
def test_mnist_at_hand_is_used(variable: bool, mnist_dir: Path, tmp_path: Path) -> None:
    flags, changes = [], {**dead_proxy(), "MLP_DIST_DATA": str(mnist_dir)}
    if not variable:
        flags, changes["MLP_DIST_DATA"] = ["--data-dir", str(mnist_dir)], str(tmp_path / "elsewhere")
    values = result(train("--epochs", "1", *flags, cwd=tmp_path, **changes))
    assert values["dataset"] == "mnist"
    assert values["test_accuracy"] > 0.94


def test_a_store_that_is_damaged_costs_no_training(tmp_path: Path) -> None:
    (tmp_path / "damaged.db").write_text("not a database")
    done = train(*DATASET, "--epochs", "1", cwd=tmp_path, MLFLOW_TRACKING_URI="sqlite:///damaged.db")
    values = result(done)
    assert values["run_id"] is None
    assert done.stderr.count("warning") == 1
    assert "MLflow at sqlite:///damaged.db cannot take the run: " in done.stderr
    assert f"send the rest by python launch/sync.py {values['output_dir']}\n" in done.stderr
    assert "Traceback" not in done.stderr
    again = train(*DATASET, "--epochs", "1", "--output-dir", values["output_dir"], cwd=tmp_path)
    assert again.returncode == 2
    assert "holds a run that MLflow has not got whole: python launch/sync.py " in again.stderr


@with_store
def test_a_loss_that_is_not_finite_ends_the_run_failed(tmp_path: Path) -> None:
    done = train(*DATASET, "--epochs", "3", "--lr", "1e30", cwd=tmp_path)
    assert done.returncode == 1
    assert "the loss of step 2 (epoch 1) is not finite at learning rate 1e+30; try a smaller" in done.stderr
    assert "(the checkpoint of epoch 0 is kept in " in done.stderr
    assert "Traceback" not in done.stderr
    assert [run.info.status for run in all_runs(tmp_path)] == ["FAILED"]


@with_store
def test_a_crash_ends_the_run_failed(tmp_path: Path) -> None:
    # A file where the bundle's directory must be made.
    output = tmp_path / "output"
    output.mkdir()
    script = (
        "import sys, mlp_dist.training.report\n"
        "def broken(*a, **k): raise RuntimeError('the disk is gone')\n"
        "mlp_dist.training.report.write_outputs = broken\n"
        "from mlp_dist import train; train.main()\n"
    )
    words = [sys.executable, "-c", script, *DATASET, "--epochs", "1", "--output-dir", str(output)]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "the disk is gone" in done.stderr
    assert [run.info.status for run in all_runs(tmp_path)] == ["FAILED"]


def all_runs(cwd: Path) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def check_what_is_refused(flags: list[str], trained: int, cwd: Path) -> None:
    """An unfinished run is neither overwritten nor gone on with otherwise."""
    again = train(*flags, cwd=cwd)
    assert again.returncode == 2
    stopped = (
        rf"stopped after (epoch {trained}|step \d+ of epoch {trained + 1}) of 400: go on with it by --resume"
    )
    assert re.search(stopped, again.stderr)
    changes = ("--lr", "0.2", "--recipe", "mnist-500")
    changed = train("--resume", "--output-dir", "output", *changes, cwd=cwd)
    assert changed.returncode == 2
    assert "lr 0.1, not 0.2, recipe mnist, not mnist-500" in changed.stderr
    fewer = train("--resume", "--output-dir", "output", "--epochs", "1", cwd=cwd)
    assert fewer.returncode == 2
    assert f"has trained {trained} epochs already" in fewer.stderr


@with_store
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    flags = [*DATASET, "--epochs", "400", "--batch-size", "20", "--output-dir", "output"]
    words = [sys.executable, str(ROOT / "launch/train.py"), *flags]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in errors
    assert "--resume --output-dir" in errors
    assert "Traceback" not in errors
    trained = len(metrics(tmp_path / "output"))
    assert 3 <= trained < 400
    assert [run.info.status for run in all_runs(tmp_path)] == ["KILLED"]

    check_what_is_refused(flags, trained, tmp_path)
    total = str(trained + 2)
    resumed = result(train("--resume", "--output-dir", "output", "--epochs", total, cwd=tmp_path))
    whole = result(train(*flags[:-1], "whole", "--epochs", total, cwd=tmp_path))

    for which in ("model", "best"):
        for name, tensor in weights(whole["output_dir"], which).items():
            assert torch.equal(weights(resumed["output_dir"], which)[name], tensor)
    [run] = [run for run in all_runs(tmp_path) if run.info.run_id == resumed["run_id"]]
    assert run.info.status == "FINISHED"
    assert len(all_runs(tmp_path)) == 2
    from mlflow.tracking import MlflowClient

    history = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_metric_history(
        resumed["run_id"], "train/loss"
    )
    assert sorted(point.step for point in history) == list(range(1, trained + 3))


def test_trainings_may_start_together_on_a_new_store(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "launch/train.py"), *DATASET, "--epochs", "1"]
    together = [
        subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [json.loads(each.communicate(timeout=240)[0].splitlines()[-1]) for each in together]
    assert [each.returncode for each in together] == [0, 0, 0]
    assert len({each["run_id"] for each in results}) == 3
    assert len({each["output_dir"] for each in results}) == 3


@with_store
def test_two_trainings_in_one_directory_do_not_meet(tmp_path: Path) -> None:
    flags = [*DATASET, "--output-dir", "output"]
    words = [sys.executable, str(ROOT / "launch/train.py"), *flags, "--epochs", "4000"]
    first = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    try:
        for line in first.stdout:
            if line.startswith("epoch 1/"):
                break
        for second in (
            train(*flags, cwd=tmp_path),
            train("--resume", "--output-dir", "output", cwd=tmp_path),
        ):
            assert second.returncode == 2
            assert "another training runs in output; choose another --output-dir" in second.stderr
    finally:
        first.terminate()
        first.communicate(timeout=60)
