"""Several processes against one, through Accelerate's launcher."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.calling import Call
from tests.helpers.comparing import logged, read_history, runs_of, saved_state
from tests.helpers.launching import QUICK, ROOT, launch, processes, result, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store_at_hand")]

TOLERANCE = 1e-5


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads of MKL add fewer than 100 rows in another order on Intel's processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_training(one: dict[str, object], many: dict[str, object]) -> None:
    expected, found = (saved_state(str(each["output_dir"]))["model"] for each in (one, many))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE)
    curves = [read_history(str(each["output_dir"])) for each in (one, many)]
    for a, b in zip(*curves, strict=True):
        for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            assert a[name] == pytest.approx(b[name], abs=TOLERANCE)
    assert one["test_accuracy"] == many["test_accuracy"]


# Small steps keep rounding from flipping a ReLU. Four processes have unequal shares of 94 images; the last
# batch has a single image.
@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.nightly)])
@pytest.mark.usefixtures("one_thread")
def test_several_processes_train_the_weights_of_one(number: int, train_here: Call, tmp_path: Path) -> None:
    """Two epochs by several processes; the third by one, which resumes."""
    flags = "--recipe mnist-quick --dataset digits --lr 0.01 --batch-size 94 --log-every 4"
    launcher = ("--config_file", str(ROOT / "launch/configs/multi_cpu.yaml"), "--num_processes", str(number))
    words = [*flags.split(), "--output-dir", "many", "--epochs", "2"]
    done = launch(*words, cwd=tmp_path, launcher=launcher, ACCELERATE_USE_CPU="true")
    assert result(done)["num_processes"] == number
    assert f"training on {number} CPU processes" in done.stdout
    assert done.stdout.count("epoch 1/2") == done.stdout.count("step 4  loss") == 1
    [run] = runs_of(tmp_path)
    assert (run.info.status, run.data.tags["num_processes"]) == ("FINISHED", str(number))

    resumed = train_here("--resume --output-dir many --epochs 3", OMP_NUM_THREADS="1")
    many = result(resumed)
    assert many["num_processes"] == 1
    assert "resumed after epoch 2 of 3" in resumed.stdout
    [note] = [line for line in resumed.stdout.splitlines() if line.startswith("the run was on")]
    assert note.startswith(f"the run was on {number} CPU processes of ")
    assert note.endswith("up to rounding, not bit for bit")
    assert [step for step, _ in logged(tmp_path, run.info.run_id)] == [1, 2, 3]
    one = result(train_here(f"{flags} --output-dir one --epochs 3", OMP_NUM_THREADS="1"))
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
    flags = (*QUICK, "--epochs", "3", "--mixed-precision", precision)
    done = launch(*flags, cwd=tmp_path, launcher=processes(1))
    assert result(done)["test_accuracy"] > 0.85
    assert torch.cuda.get_device_name(0) in done.stdout
