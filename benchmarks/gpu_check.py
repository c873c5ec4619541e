"""Everything that needs a GPU: the tests, and what training costs on it.

  python -m benchmarks.gpu_check                  as `make gpu-check` does
  python -m benchmarks.gpu_check --repeats 11 --cases adam-64

Runs the tests marked `gpu`; benchmarks.training beside the notebook's loop, an eager loop with Accelerate,
and the matrix products alone in a CUDA graph, which no launch holds up; the recipe mnist-128-64-adam, all of
its 20 epochs; and its model's answers to a batch of 64 images, as a TorchServe worker asks for them. Writes
DIR/<card>.json with date and versions, to be committed. The last line on stdout is the same JSON object. Exit
code 1: a test has failed; goals that were missed are told, and no more.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import OURS, versions
from mlp_dist.console import command, processes
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.data.batches import generator
from mlp_dist.data.datasets import default_data_dir

_ROOT = Path(__file__).resolve().parents[1]
RECIPE = "mnist-128-64-adam"
PEERS = ("notebook", "accelerate", "products-highest")
SERVED = 64
"""Images of a served batch."""

NOTEBOOK_GOAL, PRODUCTS_GOAL, SECONDS_GOAL = 100.0, 1.5, 1.0
"""The notebook's time over ours at batch 64 at least; ours over the products' and seconds of the recipe at
most."""


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--repeats", metavar="N", default="5", help="as benchmarks.training has it (5)")
    parser.add_argument("--epochs", metavar="N", default="4", help="likewise (4)")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="likewise (all)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=_ROOT / "benchmarks/results",
        help="(benchmarks/results)",
    )
    return parser.parse_args()


def card() -> str:
    """Raises UsageError where there is no GPU."""
    if processes.use_cpu():
        raise UsageError(
            f"torch {torch.__version__} finds no CUDA GPU here (or ACCELERATE_USE_CPU says not to use it), "
            "so there is nothing to check; run this on the machine that has one"
        )
    return torch.cuda.get_device_name()


def slug(name: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200", for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def told(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command in the project's root, its stdout shown as it comes: (exit code, last line)."""
    last = ""
    with subprocess.Popen(
        arguments, cwd=_ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


def result_of(*arguments: str, **environment: str) -> dict[str, Any]:
    """The JSON object in the last line. Raises TrainingError where the command fails."""
    code, last = told(*arguments, **environment)
    if code:
        raise TrainingError(f"{' '.join(arguments)} ended with exit code {code}; see above")
    found: dict[str, Any] = json.loads(last)
    return found


def train_recipe() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        found = result_of(
            *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"),
            *("launch/train.py", "--recipe", RECIPE, "--output-dir", f"{directory}/run"),
            MLFLOW_TRACKING_URI=f"sqlite:///{directory}/mlflow.db",
            MLP_DIST_DATA=str(default_data_dir().absolute()),
        )
        served = {device: batch_ms(Path(f"{directory}/run/bundle"), device) for device in ("cuda", "cpu")}
    return {"served_ms": served, **{key: found[key] for key in ("train_seconds", "test_accuracy")}}


def batch_ms(bundle_directory: Path, device: str, repeats: int = 200) -> float:
    """Milliseconds from SERVED decoded images to their probabilities as Python's numbers, the median."""
    bundle = load_bundle(bundle_directory, device=device)
    spec = bundle.spec.image
    size = (SERVED, spec.channels, spec.height, spec.width)
    images = torch.randint(256, size, generator=generator(0)).to(torch.uint8)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        bundle.probabilities(images.to(device)).tolist()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def goals(training: dict[str, Any], train_seconds: float) -> list[dict[str, Any]]:
    """Those whose contestants were there. `training` is what benchmarks.training tells."""
    found = [_goal(f"{RECIPE}, s", train_seconds, "<=", SECONDS_GOAL)]
    for case in training["cases"]:
        others, name = case["contestants"], case["case"]
        products = f"products-{others[OURS]['precision']}"
        if case["batch_size"] == 64 and "notebook" in others:
            ratio = others["notebook"]["times_ours"]
            found.append(_goal(f"{name}: notebook / {OURS}", ratio, ">=", NOTEBOOK_GOAL))
        if products in others:
            ratio = 1 / others[products]["times_ours"]
            found.append(_goal(f"{name}: {OURS} / {products}", ratio, "<=", PRODUCTS_GOAL))
    return found


def _goal(name: str, value: float, sign: str, wanted: float) -> dict[str, Any]:
    met = value >= wanted if sign == ">=" else value <= wanted
    return {"name": name, "value": value, "wanted": f"{sign} {wanted:g}", "met": met}


def main() -> int:
    args = parse()
    gpu = card()
    failed, tests = told(sys.executable, "-m", "pytest", "-q", "-m", "gpu")
    recipe = train_recipe()
    training = result_of(
        *(sys.executable, "-m", "benchmarks.training", "--peers", *PEERS),
        *("--repeats", args.repeats, "--epochs", args.epochs),
        *(("--cases", *args.cases) if args.cases else ()),
    )
    reached = goals(training, recipe["train_seconds"])
    for device, taken in recipe["served_ms"].items():
        print(f"  {SERVED} images answered on {device}: {taken:.3f} ms")
    for goal in reached:
        met = "met" if goal["met"] else "missed"
        print(f"  {goal['name']:<40} {goal['value']:>8.2f}  wanted {goal['wanted']:<7} {met}")
    result = {
        "benchmark": "gpu-check",
        "date": time.strftime("%Y-%m-%d"),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "versions": versions(),
        "tests": tests,
        "recipe": {"name": RECIPE, **recipe},
        "goals": reached,
        "training": training,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    with replacing_file(args.output / f"{slug(gpu)}.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    command.run(main)
