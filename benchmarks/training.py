"""Time an epoch of training, interleaved with the same training in other frameworks.

  python -m benchmarks.training
  python -m benchmarks.training --cases sgd-100 --peers notebook --repeats 11

Every contestant has its own process and all cores. Each repeat trains new weights on each contestant, in
random order, with the repeat's number as seed. An epoch includes shuffling, batching, forward, backward and
update, and excludes reading the data, building the model and testing. mlp_dist is the whole trainer, with
Accelerate, metrics, checkpoints and MLflow; its time is the train_seconds that it reports. Progress bars
are off.

"s/epoch" is the median over the repeats of the median of a repeat's epochs after the first. "ratio" is the
median of the ratios to mlp_dist within a repeat, with minimum and maximum. "first s" is a process's very
first epoch. "test accuracy" is after one epoch, mean and standard deviation over the seeds; "same": with
three or more seeds, the means differ by at most three standard errors.

Without MNIST, scikit-learn's digits are used. Contestants that are not installed are skipped; `make bench`
installs them. The last line on stdout is one JSON object.
"""

import argparse
import json
import math
import platform
import re
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import OURS, PEERS, missing, versions
from benchmarks.peers.cases import CASES, Case, Timing
from benchmarks.peers.process import contestant
from mlp_dist.console import command, process
from mlp_dist.core.errors import DownloadError, UsageError, unknown
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.batches import generator
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset

COLUMNS = "{:<18} {:>8}  {:>19}  {:>7}  {:>15}  {:<4}"
STANDARD_ERRORS = 3


@dataclass(frozen=True)
class PeerResult:
    """A contestant's repeats of one case."""

    name: str
    repeats: list[Timing]

    @property
    def seconds(self) -> list[float]:
        """Per repeat, the median of the epochs after the first."""
        return [statistics.median(repeat.seconds[1:]) for repeat in self.repeats]

    @property
    def accuracies(self) -> list[float]:
        return [repeat.accuracy for repeat in self.repeats]

    def ratios(self, other: "PeerResult") -> list[float]:
        return [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]

    def same_accuracy(self, other: "PeerResult") -> bool | None:
        """None with fewer than three repeats."""
        pair = (self.accuracies, other.accuracies)
        if min(map(len, pair)) < 3:
            return None
        error = math.sqrt(sum(statistics.variance(values) / len(values) for values in pair))
        return abs(statistics.mean(pair[0]) - statistics.mean(pair[1])) <= STANDARD_ERRORS * error

    def row(self, ours: "PeerResult") -> str:
        std = statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0
        ratios = self.ratios(ours)
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        same = {True: "yes", False: "no", None: "-"}[self.same_accuracy(ours)]
        return COLUMNS.format(
            self.name,
            f"{statistics.median(self.seconds):.3f}",
            "" if self is ours else ratio,
            f"{self.repeats[0].seconds[0]:.2f}",
            f"{statistics.mean(self.accuracies):.4f} ± {std:.4f}",
            "" if self is ours else same,
        ).rstrip()

    def to_json(self, ours: "PeerResult") -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "median": statistics.median(self.seconds),
            "first_epochs": [repeat.seconds[0] for repeat in self.repeats],
            "times_ours": statistics.median(self.ratios(ours)),
            "accuracies": self.accuracies,
            "same_accuracy": self.same_accuracy(ours),
            "device": self.repeats[0].device,
        }


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="use the seeds 0 to N-1 (5)")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="epochs per repeat (2)")
    parser.add_argument(
        "--cases", nargs="+", metavar="NAME", default=list(CASES), help=f"of {', '.join(CASES)} (all)"
    )
    peers = [name for name in PEERS if name != OURS]
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", default=peers, help=f"of {', '.join(peers)} (all)"
    )
    parser.add_argument("--dataset", choices=("mnist", "digits"), metavar="NAME", help="mnist or digits")
    args = parser.parse_args()
    for name, value, least in (("repeats", args.repeats, 1), ("epochs", args.epochs, 2)):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be {least} or more")
    for kind, given, known in (("case", args.cases, list(CASES)), ("peer", args.peers, peers)):
        for name in given:
            if name not in known:
                raise UsageError(unknown(kind, name, known))
    return args


def read(name: str | None) -> Dataset:
    """The data set `name`; without a name MNIST, or the digits if MNIST cannot be downloaded."""
    try:
        prepare_dataset(name or "mnist", default_data_dir())
    except DownloadError as error:
        if name is not None:
            raise
        print(f"{str(error).splitlines()[0]}; training on the digits instead")
        name = "digits"
    return read_dataset(name or "mnist", default_data_dir())


def measure(case: Case, names: list[str], *, repeats: int, num_epochs: int) -> dict[str, PeerResult]:
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    with ExitStack() as stack:
        trains = [stack.enter_context(contestant(name, case)) for name in names]
        for repeat in range(repeats):
            for index in torch.randperm(len(names), generator=generator(repeat)).tolist():
                timings[names[index]].append(trains[index](repeat, num_epochs))
    return {name: PeerResult(name, each) for name, each in timings.items()}


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": process.num_cores(),
        "gpu": None if process.use_cpu() else torch.cuda.get_device_name(),
    }


def main() -> None:
    args = parse()
    data = read(args.dataset)
    asked = [name for name in PEERS if name in (OURS, *args.peers)]
    skipped = {name: lacking for name in asked if (lacking := missing(PEERS[name].needs))}
    names = [name for name in asked if name not in skipped]
    host = machine()
    print(f"{host['gpu'] or host['cpu']}, {host['cores']} cores, torch {torch.__version__}, {data.title}")
    for name, lacking in skipped.items():
        print(f"skipped: {name} ({', '.join(lacking)} is not installed; make bench installs it)")
    cases = []
    for case in (CASES[name].of(data) for name in args.cases):
        print(f"\n{case.name}: {case.title(data)}", flush=True)
        results = measure(case, names, repeats=args.repeats, num_epochs=args.epochs)
        print(COLUMNS.format("", "s/epoch", "ratio", "first s", "test accuracy", "same"))
        for result in sorted(results.values(), key=lambda result: statistics.median(result.seconds)):
            print(result.row(results[OURS]), flush=True)
        contestants = {name: result.to_json(results[OURS]) for name, result in results.items()}
        cases.append(
            {"case": case.name, "images": case.num_images, "batch_size": case.batch_size}
            | {"contestants": contestants}
        )
    found = {
        "benchmark": "training",
        "date": time.strftime("%Y-%m-%d"),
        "machine": host,
        "versions": versions("torch", "accelerate", "mlflow", "lightning"),
        "dataset": data.name,
        "repeats": args.repeats,
        "epochs": args.epochs,
        "skipped": skipped,
        "cases": cases,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    command.run(main)
