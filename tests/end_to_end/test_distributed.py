"""Several processes against one, through Accelerate's launcher."""

from pathlib import Path

import pytest
import torch

from tests.helpers.launching import QUICK, launch, result, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store_at_hand")]


def processes(number: int) -> tuple[str, ...]:
    return ("--multi_gpu", "--num_processes", str(number), "--main_process_port", "0")


# Small steps keep rounding from flipping a ReLU. Four processes have unequal shares of 94 images; the last
# batch has a single image.


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
        *(*QUICK, "--epochs", "3", "--mixed-precision", precision),
        cwd=tmp_path,
        launcher=("--num_processes", "1"),
    )
    assert result(done)["test_accuracy"] > 0.85
    assert torch.cuda.get_device_name(0) in done.stdout
