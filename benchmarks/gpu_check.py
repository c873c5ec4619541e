"""Check a GPU: run the tests marked `gpu`, train a recipe, and time training.

  python -m benchmarks.gpu_check                  as `make gpu-check` does
  python -m benchmarks.gpu_check --repeats 11 --cases adam-64

Trains the recipe mnist-128-64-adam, and runs benchmarks.training with the notebook's loop and a loop with
Accelerate. The last line on stdout is one JSON object, also in benchmarks/results/CARD.json.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.peers.cases import CASES
from mlp_dist.console import command
from mlp_dist.console.process import use_cpu
from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.data.datasets import default_data_dir

RESULTS = ROOT / "benchmarks/results"
RECIPE = "mnist-128-64-adam"


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a Python module in the project's root and pass its stdout through: (exit code, last line)."""
    words, last = [sys.executable, "-m", *arguments], ""
    with subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


def run_json(*arguments: str, **environment: str) -> dict[str, Any]:
    """The JSON object in the last line. Raises TrainingError if the module fails."""
    code, last = run(*arguments, **environment)
    if code:
        raise TrainingError(f"{' '.join(arguments)} failed with exit code {code}; see above")
    found: dict[str, Any] = json.loads(last)
    return found


def train_recipe() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        return run_json(
            *("accelerate.commands.launch", "--num_processes", "1", "launch/train.py"),
            *("--recipe", RECIPE, "--output-dir", f"{directory}/run"),
            MLFLOW_TRACKING_URI=f"sqlite:///{directory}/mlflow.db",
            MLP_DIST_DATA=str(default_data_dir().absolute()),
        )


def main() -> int:
    parser = command.Parser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--repeats", metavar="N", default="5", help="passed to benchmarks.training (5)")
    parser.add_argument("--epochs", metavar="N", default="4", help="passed to benchmarks.training (4)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="as those (all)")
    args = parser.parse_args()
    if use_cpu():
        raise UsageError(
            f"torch {torch.__version__} finds no CUDA GPU here (or ACCELERATE_USE_CPU disables it); "
            "run this on a machine with a GPU"
        )
    failed, tests = run("pytest", "-q", "-m", "gpu")
    recipe = train_recipe()
    flags = ["--repeats", args.repeats, "--epochs", args.epochs, "--cases", *args.cases]
    training = run_json("benchmarks.training", "--peers", "notebook", "accelerate", *flags)
    print(f"{RECIPE}: {recipe['train_seconds']:.2f} s, test accuracy {recipe['test_accuracy']:.4f}")
    gpu = torch.cuda.get_device_name()
    result: dict[str, Any] = {"benchmark": "gpu-check", "date": time.strftime("%Y-%m-%d"), "gpu": gpu}
    result |= {"cuda": torch.version.cuda, "tests": tests, "recipe": recipe, "training": training}
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    with replacing_file(RESULTS / f"{name}.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    command.run(main)
