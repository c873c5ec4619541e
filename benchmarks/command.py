"""Where the time of the whole command goes, from Enter to the prompt, and what memory it takes.

  python -m benchmarks.command                 the default recipe, three times, and a first run before
  python -m benchmarks.command --repeats 5

`accelerate launch launch/train.py` runs in a temporary directory with an MLflow store of its own. Each time,
the imports of torch and accelerate are measured in turn with it: in a launcher of a script that does nothing,
and in a process that does nothing else. "rest" is what is neither these nor training nor evaluation; medians.
The last line on stdout is one JSON object: seconds, and the most memory a process held, in MiB.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlp_dist.console import command
from mlp_dist.core.errors import UsageError
from mlp_dist.data.datasets import default_data_dir

ROOT = Path(__file__).resolve().parents[1]
SHARE_GOAL, MEMORY_GOAL = 1 / 3, 1.3

_PEAK = "import resource\nprint('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)\n"
_TRAIN = f"""
import atexit
from mlp_dist import command, train

def tell():
    {_PEAK.strip().replace(chr(10), "; ")}

def main():
    atexit.register(tell)
    train.main()

command.run(main, at_once=True)
"""
"""launch/train.py, which tells at its end what it held."""

_HOLDING = f"""
import torch, accelerate, mlflow
from pathlib import Path
from mlp_dist.data.readers import read_dataset
data = read_dataset("mnist", Path({{data_dir!r}}))
{_PEAK}"""


def run(words: list[str], directory: Path, **variables: str) -> tuple[float, list[str]]:
    """(seconds, the lines on stdout) of a command. Raises UsageError where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    environment.pop("MLFLOW_TRACKING_URI", None)
    started = time.perf_counter()
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise UsageError(f"{' '.join(words[:3])} failed: {done.stderr[-2000:]}")
    return seconds, done.stdout.splitlines()


def told(lines: list[str], name: str) -> float:
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name} "))
    return float(value)


def measure(directory: Path, data_dir: Path) -> dict[str, float]:
    """One run of the command, with the imports measured before it: seconds, and the peak in MiB."""
    launching, _ = run(["accelerate", "launch", "--quiet", "empty.py"], directory)
    starting, _ = run([sys.executable, "empty.py"], directory)
    importing, _ = run([sys.executable, "-c", "import torch, accelerate"], directory)
    words = ["accelerate", "launch", "--quiet", "train.py", "--data-dir", str(data_dir)]
    whole, lines = run(words, directory)
    (result,) = (json.loads(line) for line in lines if line.startswith("{"))
    # The launcher of an empty script has started Python twice.
    imports = launching + importing - 2 * starting
    metrics = directory / result["output_dir"] / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    training, evaluation = result["train_seconds"], sum(record["evaluate_seconds"] for record in records)
    return {
        "whole": whole,
        "imports": imports,
        "training": training,
        "evaluation": evaluation,
        "rest": whole - imports - training - evaluation,
        "share": (whole - imports - training - evaluation) / (whole - imports),
        "evaluation_10000": evaluation * 10_000 / (15_000 * result["epochs"]),
        "steps_500": training * 500 / (550 * result["epochs"]),
        "peak": told(lines, "peak") / 1024,
    }


def report(first: dict[str, float], later: dict[str, float], holding: float) -> None:
    print(f"{'':<36} {'first run':>10} {'later':>10}")
    for name in ("whole", "imports", "training", "evaluation", "rest"):
        label = "imports of torch and accelerate" if name == "imports" else name
        print(f"{label:<36} {first[name]:>8.2f} s {later[name]:>8.2f} s")
    print(f"{'rest of all but imports':<36} {first['share']:>10.1%} {later['share']:>10.1%}")
    print(
        f"10,000 images evaluated in {later['evaluation_10000']:.3f} s, "
        f"500 steps trained in {later['steps_500']:.3f} s\n"
        f"memory at its peak: {later['peak']:.0f} MiB, {later['peak'] / holding:.2f} times the "
        f"{holding:.0f} MiB of a process that imported torch, accelerate and mlflow and holds the data"
    )


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.command", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs after the first (3)")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), metavar="DIR")
    args = parser.parse_args()
    if args.repeats < 1:
        raise UsageError(f"repeats is {args.repeats}; it must be 1 or more")
    data_dir = args.data_dir.absolute()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "empty.py").touch()
        (directory / "train.py").write_text(_TRAIN)
        first, *runs = (measure(directory, data_dir) for _ in range(1 + args.repeats))
        holding = _HOLDING.format(data_dir=str(data_dir))
        holds = told(run([sys.executable, "-c", holding], directory)[1], "peak") / 1024
    later = {name: statistics.median(each[name] for each in runs) for name in first}
    report(first, later, holds)
    goals = {
        "share": later["share"] <= SHARE_GOAL,
        "memory": later["peak"] <= MEMORY_GOAL * holds,
        "evaluation": later["evaluation_10000"] < later["steps_500"],
    }
    found = {"first": first, "later": later, "holding": holds, "goals": goals}
    print(json.dumps({"benchmark": "command", "cores": os.cpu_count(), **found}))


if __name__ == "__main__":
    command.run(main)
