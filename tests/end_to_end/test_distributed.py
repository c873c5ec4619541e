"""Several processes against one, through the launcher that people use."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.launching import DATASET, launch, result, run, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store_at_hand")]

TOLERANCE = 1e-5


def processes(number: int) -> tuple[str, ...]:
    return ("--multi_gpu", "--num_processes", str(number), "--main_process_port", "0")


def final_weights(output_dir: str) -> dict[str, torch.Tensor]:
    state: dict[str, dict[str, torch.Tensor]] = torch.load(Path(output_dir) / "last.pt", weights_only=True)
    return state["model"]


def assert_same_training(one: dict[str, object], many: dict[str, object]) -> None:
    expected, found = final_weights(str(one["output_dir"])), final_weights(str(many["output_dir"]))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE)
    curves = [
        [
            json.loads(line)
            for line in (Path(str(each["output_dir"])) / "metrics.jsonl").read_text().splitlines()
        ]
        for each in (one, many)
    ]
    for a, b in zip(*curves, strict=True):
        for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            assert a[name] == pytest.approx(b[name], abs=TOLERANCE)
        assert [step["step"] for step in a["steps"]] == [step["step"] for step in b["steps"]]
        for step, other in zip(a["steps"], b["steps"], strict=True):
            assert step["loss"] == pytest.approx(other["loss"], abs=TOLERANCE)
    assert one["test_accuracy"] == many["test_accuracy"]


# Batches of 94 leave shares of different sizes, and of the last one, of a single image, three of none.
def test_four_processes_train_the_same_weights(tmp_path: Path) -> None:
    number = 4
    flags = [*DATASET, "--epochs", "3", "--batch-size", "94", "--log-every", "4"]
    # On Intel's processors two threads of MKL share out the sums of fewer than 100 rows.
    one = result(train(*flags, "--output-dir", "one", cwd=tmp_path, OMP_NUM_THREADS="1"))
    done = launch(
        *flags, "--output-dir", "many", cwd=tmp_path, launcher=processes(number), ACCELERATE_USE_CPU="true"
    )
    many = result(done)
    assert (one["num_processes"], many["num_processes"]) == (1, number)
    assert f"training on {number} CPU processes" in done.stdout
    assert done.stdout.count("epoch 1/3") == done.stdout.count("step 4  loss") == 1
    assert_same_training(one, many)


def test_two_processes_on_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "mnist", "--data-dir", str(mnist_dir), "--epochs", "1"]
    one = result(train(*flags, "--output-dir", "one", cwd=tmp_path))
    many = launch(
        *flags, "--output-dir", "two", cwd=tmp_path, launcher=processes(2), ACCELERATE_USE_CPU="true"
    )
    assert_same_training(one, result(many))


@pytest.mark.parametrize("launcher", [("--cpu", "--num_processes", "2"), ("--cpu", "--num-processes=2")])
def test_fewer_processes_than_asked_for_stop_and_name_the_command(
    launcher: tuple[str, ...], tmp_path: Path
) -> None:
    done = launch(*DATASET, "--epochs", "1", cwd=tmp_path, launcher=launcher)
    assert done.returncode != 0
    assert "asked for 2 processes but has started 1" in done.stderr
    assert "accelerate launch --multi_gpu --num_processes 2" in done.stderr
    assert "epoch 1" not in done.stdout


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    done = launch("--recipe", "nope", cwd=tmp_path, launcher=processes(2), ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert done.stderr.count("unknown recipe 'nope'") == 1


LATE = """
import os, sys, time
from mlp_dist import command
from mlp_dist.core.errors import UsageError

def main():
    if os.environ["RANK"] == "0":
        time.sleep(2)
    if sys.argv[1:]:
        command.Parser(prog="late").parse_args()
    raise UsageError("wrong")

command.run(main)
"""


@pytest.mark.parametrize(
    ("flags", "told"), [([], "error: wrong\n"), (["--odd"], "error: unknown argument '--odd'")]
)
def test_a_mistake_is_told_also_where_the_main_process_comes_to_it_last(
    flags: list[str], told: str, tmp_path: Path
) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    words = ["accelerate", "launch", *processes(2), str(script), *flags]
    done = run(words, tmp_path, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert done.stderr.count(told) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_one_gpu_trains(precision: str, tmp_path: Path) -> None:
    done = launch(
        *(*DATASET, "--epochs", "3", "--mixed-precision", precision),
        cwd=tmp_path,
        launcher=("--num_processes", "1"),
    )
    assert result(done)["test_accuracy"] > 0.85
    assert torch.cuda.get_device_name(0) in done.stdout


@pytest.mark.gpu
def test_more_processes_than_gpus_stop_with_the_command(tmp_path: Path) -> None:
    number = torch.cuda.device_count() + 1
    done = launch(*DATASET, "--epochs", "1", cwd=tmp_path, launcher=processes(number))
    assert done.returncode != 0
    assert f"{number} processes on this machine, but it has {number - 1} GPU" in done.stderr
