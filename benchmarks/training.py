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
first epoch. "test accuracy" is after one epoch, mean and standard deviation over the seeds.

In the first case, "busy" are the same trainings beside one busy loop per core.

Contestants that are not installed are skipped; `make bench` installs them. The last line on stdout is one
JSON object.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import at_least
from benchmarks.peers import OURS, PEERS, missing, versions
from benchmarks.peers.cases import CASES, Case, Timing
from benchmarks.peers.process import contestant
from mlp_dist.console import command, process
from mlp_dist.data.batches import generator
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset

COLUMNS = "{:<18} {:>8}  {:>19}  {:>7}  {:>15}"
BUSY = ", busy"


def compare(repeats: list[Timing], ours: list[Timing]) -> dict[str, Any]:
    """A contestant's repeats of a case beside ours."""
    mine, its = ([statistics.median(each.seconds[1:]) for each in timings] for timings in (repeats, ours))
    return {
        "seconds": mine,
        "median": statistics.median(mine),
        "first_epochs": [each.seconds[0] for each in repeats],
        "times_ours": [one / other for one, other in zip(mine, its, strict=True)],
        "accuracies": [each.accuracy for each in repeats],
        "device": repeats[0].device,
    }


def row(name: str, found: dict[str, Any]) -> str:
    ratios, accuracies = found["times_ours"], found["accuracies"]
    ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    median, first = f"{found['median']:.3f}", f"{found['first_epochs'][0]:.2f}"
    accuracy = f"{statistics.mean(accuracies):.4f} ± {std:.4f}"
    return COLUMNS.format(name, median, "" if name == OURS else ratio, first, accuracy)


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeats", type=at_least(1), default=5, metavar="N", help="seeds 0 to N-1 (5)")
    parser.add_argument("--epochs", type=at_least(2), default=2, metavar="N", help="epochs per repeat (2)")
    peers = [name for name in PEERS if name != OURS]
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="(all)")
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="(all)")
    parser.add_argument("--dataset", choices=("mnist", "digits"), default="mnist", help="(mnist)")
    return parser.parse_args()


def measure(case: Case, names: list[str], *, repeats: int, num_epochs: int) -> dict[str, list[Timing]]:
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    with ExitStack() as stack:
        trains = [stack.enter_context(contestant(name.removesuffix(BUSY), case)) for name in names]
        for repeat in range(repeats):
            for index in torch.randperm(len(names), generator=generator(repeat)).tolist():
                with busy_loops() if names[index].endswith(BUSY) else nullcontext():
                    timings[names[index]].append(trains[index](repeat, num_epochs))
    return timings


@contextmanager
def busy_loops() -> Iterator[None]:
    """As many busy processes as cores."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(process.num_cores())]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


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
    prepare_dataset(args.dataset, default_data_dir())
    data = read_dataset(args.dataset, default_data_dir())
    asked = [name for name in PEERS if name in (OURS, *args.peers)]
    skipped = {name: lacking for name in asked if (lacking := missing(PEERS[name].needs))}
    names = [name for name in asked if name not in skipped]
    host = machine()
    print(f"{host['gpu'] or host['cpu']}, {host['cores']} cores, torch {torch.__version__}, {data.title}")
    for name, lacking in skipped.items():
        print(f"skipped: {name} ({', '.join(lacking)} is not installed; make bench installs it)")
    cases: list[dict[str, Any]] = []
    for case in (CASES[name].of(data) for name in args.cases):
        print(f"\n{case.name}: {case.title(data)}", flush=True)
        busy = [f"{name}{BUSY}" for name in names if name in (OURS, "notebook") and not cases]
        timings = measure(case, names + busy, repeats=args.repeats, num_epochs=args.epochs)
        found = {name: compare(repeats, timings[OURS]) for name, repeats in timings.items()}
        print(COLUMNS.format("", "s/epoch", "ratio", "first s", "test accuracy"))
        for name in sorted(found, key=lambda name: found[name]["median"]):
            print(row(name, found[name]), flush=True)
        facts = {"case": case.name, "images": case.num_images, "batch_size": case.batch_size}
        cases.append(facts | {"contestants": found})
    result = {
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
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
