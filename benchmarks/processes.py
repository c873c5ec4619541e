"""What a second process costs on one machine: two of one thread against one of two, and where the time goes.

  python -m benchmarks.processes
  python -m benchmarks.processes --batch-sizes 100 1000 --repeats 7

Trains 784-500-10 on MNIST by the project's Trainer, under `accelerate launch`, in turn. An epoch of two
processes is then divided: "alone" is the epoch of each as if there were nobody to talk to, "in calls" the
time in the engine's exchange, of which the part that waits for the other process cannot be told apart.

Beside it the step on paper for more processes: the model's bytes a step over a network, by ring all-reduce of
its gradient (2 (n - 1) / n times its size) or by all-gather of what SharedRows sends. The last line on
stdout is one JSON object.
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mlp_dist.console import command, processes
from mlp_dist.core.errors import MlpDistError, UsageError
from mlp_dist.data.datasets import default_data_dir, prepare_dataset

GOALS = {100: 2.5, 1000: 1.45}
NETWORKS = {"NVLink, 450 GB/s": 450e9, "100 Gbit/s": 12.5e9, "10 Gbit/s": 1.25e9}
"""Bytes a second each way, as their makers state them; latency is left out."""


ON_PAPER = (1, 2, 4, 8)
PARAMETER_BYTES, ROW_BYTES = 397_510 * 4, (500 + 500 + 10) * 4
"""Of 784-500-10: its gradient's, and those of a row of hidden values and of both layers' derivatives."""


def epoch(number: int, batch_size: int) -> dict[str, Any]:
    """What the main one of `number` processes measured."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "epoch.json")
        words = ["accelerate", "launch", "--num_processes", str(number), "--num_machines", "1"]
        words += ["--mixed_precision", "no", "--dynamo_backend", "no", *["--multi_gpu"] * (number > 1)]
        words += ["--module", "benchmarks.processes_worker", str(batch_size), str(output)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode or not output.exists():
            raise MlpDistError(f"{' '.join(words)} has failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(output.read_text())
        return found


def measure(batch_size: int, repeats: int) -> dict[str, Any]:
    rounds = [{number: epoch(number, batch_size) for number in (1, 2)} for _ in range(repeats)]
    ratios = [each[2]["whole"] / each[1]["whole"] for each in rounds]
    middle = {
        f"{name} of {number}": statistics.median(each[number][name] for each in rounds)
        for number in (1, 2)
        for name in ("whole", "alone", "talking")
    }
    return {
        "batch_size": batch_size,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "wanted": GOALS.get(batch_size),
        "bytes_a_step": rounds[0][2]["bytes_a_step"],
        **middle,
    }


def show(found: dict[str, Any]) -> None:
    wanted = f" (wanted: at most {found['wanted']:g})" if found["wanted"] else ""
    low, high = min(found["ratios"]), max(found["ratios"])
    print(f"global batch {found['batch_size']}: {found['ratio']:.2f} [{low:.2f}-{high:.2f}]{wanted}")
    print(f"  one process   {found['whole of 1']:.3f} s an epoch")
    print(f"  two processes {found['whole of 2']:.3f} s: alone {found['alone of 2']:.3f} s, ", end="")
    print(f"in calls {found['talking of 2']:.3f} s, {found['bytes_a_step']:,} bytes a step", flush=True)


def paper(batch_size: int, step_seconds: float) -> list[dict[str, Any]]:
    """Steps a second, relative to one process, where `step_seconds` are shared out evenly."""
    rows = []
    for network, speed in NETWORKS.items():
        speedups = []
        for number in ON_PAPER:
            gradient = 2 * (number - 1) / number * PARAMETER_BYTES
            gathered = (number - 1) / number * batch_size * ROW_BYTES
            sent = min(gradient, gathered)
            speedups.append(step_seconds / (step_seconds / number + sent / speed))
        rows.append({"network": network, "batch_size": batch_size, "speedups": speedups})
    return rows


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", metavar="N", default=list(GOALS), help="(100, 1000)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="(5)")
    args = parser.parse_args()
    if args.repeats < 1:
        raise UsageError(f"repeats is {args.repeats}; it must be 1 or more")
    prepare_dataset("mnist", default_data_dir())
    print(f"MNIST, {processes.num_cores()} cores: an epoch of two processes over one of one")
    cases, rows = [], []
    for batch_size in args.batch_sizes:
        cases.append(measure(batch_size, args.repeats))
        show(cases[-1])
        rows += paper(batch_size, cases[-1]["whole of 1"] / -(-55_000 // batch_size))
    print("\non paper, times as fast as one process, of " + ", ".join(map(str, ON_PAPER)))
    for row in rows:
        speedups = "  ".join(f"{speedup:6.2f}" for speedup in row["speedups"])
        print(f"  batch {row['batch_size']:<6} {row['network']:<18} {speedups}")
    print(json.dumps({"benchmark": "processes", "cores": os.cpu_count(), "cases": cases, "paper": rows}))


if __name__ == "__main__":
    command.run(main)
