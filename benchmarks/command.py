"""Time the whole training command, from Enter to the prompt, and measure its memory.

  python -m benchmarks.command                 a first run, then the default recipe three times
  python -m benchmarks.command --repeats 5

Runs `accelerate launch` in a temporary directory with its own MLflow store. Before each run, the imports of
torch and accelerate are timed: in a launcher with an empty script, and in a bare process. "rest" is
everything except these imports, training and evaluation; "after" is the time from the last epoch to the
prompt. Each run is followed by one without the process that brings MLflow up to date: "tracking" is how
much longer training takes beside it. Medians. The last line on stdout is one JSON object, with seconds and
the peak memory in MiB.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import at_least, run
from mlp_dist.console import command
from mlp_dist.data.datasets import default_data_dir

NAMES = ("whole", "imports", "training", "evaluation", "rest", "after")

_TRAIN = """
import atexit, resource
from mlp_dist.cli.train import main
from mlp_dist.console import command

def print_peak():
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)

def measured_main():
    atexit.register(print_peak)
    main()

command.run(measured_main, at_once=True)
"""

_WITHOUT_TRACKING = """
import mlp_dist.training.run
from unittest.mock import Mock
mlp_dist.training.run.Follower = lambda directory: Mock(directory=directory.absolute())
"""


def timed(words: list[str], directory: Path) -> tuple[float, list[str]]:
    """(seconds, lines on stdout) of a command."""
    started = time.perf_counter()
    lines = run(words, directory)
    return time.perf_counter() - started, lines


def measure(directory: Path, data_dir: Path) -> dict[str, float]:
    """Seconds of one run by part, and its peak memory in MiB."""
    launching, _ = timed(["accelerate", "launch", "--quiet", "empty.py"], directory)
    starting, _ = timed([sys.executable, "empty.py"], directory)
    importing, _ = timed([sys.executable, "-c", "import torch, accelerate"], directory)
    words = ["accelerate", "launch", "--quiet", "train.py", "--data-dir", str(data_dir)]
    whole, lines = timed(words, directory)
    ended = time.time()
    (result,) = (json.loads(line) for line in lines if line.startswith("{"))
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("peak "))
    # The launcher of an empty script starts Python twice.
    imports = launching + importing - 2 * starting
    metrics = (directory / result["output_dir"] / "metrics.jsonl").read_text().splitlines()
    training = result["train_seconds"]
    evaluation = sum(json.loads(line)["evaluate_seconds"] for line in metrics)
    rest = whole - imports - training - evaluation
    after = ended - json.loads(metrics[-1])["timestamp_ms"] / 1000
    values = dict(zip(NAMES, (whole, imports, training, evaluation, rest, after), strict=True))
    lines = run([*words[:3], "without.py", *words[4:]], directory)
    (bare,) = (json.loads(line)["train_seconds"] for line in lines if line.startswith("{"))
    return values | {"share": rest / (whole - imports), "peak": peak / 1024, "tracking": training / bare - 1}


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.command", description=__doc__)
    parser.add_argument("--repeats", type=at_least(1), default=3, metavar="N", help="after the first (3)")
    args = parser.parse_args()
    data_dir = default_data_dir().absolute()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "empty.py").touch()
        (directory / "train.py").write_text(_TRAIN)
        (directory / "without.py").write_text(_WITHOUT_TRACKING + _TRAIN)
        first, *runs = (measure(directory, data_dir) for _ in range(1 + args.repeats))
    later = {name: statistics.median(each[name] for each in runs) for name in first}
    print(f"{'':<32} {'first run':>10} {'later':>10}")
    for name in NAMES:
        label = "imports of torch and accelerate" if name == "imports" else name
        print(f"{label:<32} {first[name]:>8.2f} s {later[name]:>8.2f} s")
    for label, name in (
        ("rest, share without imports", "share"),
        ("tracking, share of training", "tracking"),
    ):
        print(f"{label:<32} {first[name]:>10.1%} {later[name]:>10.1%}")
    print(f"peak memory of the training process: {later['peak']:.0f} MiB")
    print(json.dumps({"benchmark": "command", "cores": os.cpu_count(), "first": first, "later": later}))


if __name__ == "__main__":
    command.run(main)
