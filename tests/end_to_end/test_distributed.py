"""Several processes against one, through Accelerate's launcher."""

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


# Small steps keep rounding from flipping a ReLU. Four processes have unequal shares of 94 images; the last
# batch has a single image.
@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_several_processes_train_the_same_weights(number: int, tmp_path: Path) -> None:
    flags = [*DATASET, "--lr", "0.01", "--epochs", "3", "--batch-size", "94", "--log-every", "4"]
    # Two threads of MKL add fewer than 100 rows in another order on Intel's processors.
    one = result(train(*flags, "--output-dir", "one", cwd=tmp_path, OMP_NUM_THREADS="1"))
    done = launch(
        *flags, "--output-dir", "many", cwd=tmp_path, launcher=processes(number), ACCELERATE_USE_CPU="true"
    )
    many = result(done)
    assert (one["num_processes"], many["num_processes"]) == (1, number)
    assert f"training on {number} CPU processes" in done.stdout
    assert done.stdout.count("epoch 1/3") == done.stdout.count("step 4  loss") == 1
    assert_same_training(one, many)


LATE = """
import os, sys, time
from mlp_dist.console import command
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
    ("flags", "message"), [([], "error: wrong\n"), (["--odd"], "error: unknown argument '--odd'")]
)
def test_errors_are_printed_once_even_if_the_main_process_is_last(
    flags: list[str], message: str, tmp_path: Path
) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    words = ["accelerate", "launch", *processes(2), str(script), *flags]
    done = run(words, tmp_path, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert done.stderr.count(message) == 1


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
def test_rejects_more_processes_than_gpus(tmp_path: Path) -> None:
    number = torch.cuda.device_count() + 1
    done = launch(*DATASET, "--epochs", "1", cwd=tmp_path, launcher=processes(number))
    assert done.returncode != 0
    assert f"{number} processes on this machine, but it has {number - 1} GPU" in done.stderr
