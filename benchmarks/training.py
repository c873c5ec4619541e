"""How long an epoch of training takes, beside the same training in other frameworks, run in turn.

  python -m benchmarks.training
  python -m benchmarks.training --cases sgd-100 --peers jax-scan products-medium --repeats 11

mlp_dist is the whole trainer: Accelerate, progress bar, metrics, checkpoints, MLflow, and its time is the
train_seconds that it reports itself. Every contestant has a process of its own and all cores. In each repeat,
in an order drawn anew, each trains new weights for --epochs epochs: the seed is the number of the repeat. An
epoch's time has in it the shuffling, the batches, forward, backward and update, for everybody; reading the
data, building the model and testing it are outside, for everybody.

"s an epoch" is the median over the repeats, each the median of its epochs after the first. "times mlp_dist's"
is the median of the ratios within a repeat, with the least and the greatest of them. "first s" is the very
first epoch in the contestant's process, "warm-up s" how much longer it took than the median, and "3 epochs s"
what three take from the start, warm-up and all. "test accuracy" is that after one epoch, mean and standard
deviation over the seeds; "same": of three or more, the means differ by at most three standard errors.
scikit-learn draws its first weights in another way, so its accuracy is not compared.

Where MNIST cannot be had, scikit-learn's digits are trained on instead. Contestants that are not installed
are left out; `make bench` installs them. The last line on stdout is one JSON object.
"""

import argparse
import json
import platform
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import OURS, PEERS, versions
from benchmarks.peers.cases import CASES, Case, Trained
from benchmarks.peers.worker import Worker
from benchmarks.results import HEADER, Result, goals
from mlp_dist.console import command, processes
from mlp_dist.core.errors import DownloadError, UsageError, unknown
from mlp_dist.data.batches import generator
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.data.image_set import Dataset

DATASETS = ("mnist", "digits")


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="the seeds 0 to N-1 (5)")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="of each repeat (2)")
    parser.add_argument(
        "--cases", nargs="+", metavar="NAME", default=list(CASES), help=f"of {', '.join(CASES)} (all)"
    )
    peers = [name for name in PEERS if name != OURS]
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=f"of {', '.join(peers)} (all)")
    parser.add_argument("--dataset", choices=DATASETS, metavar="NAME", help="mnist or digits (mnist)")
    args = parser.parse_args()
    for name, value, least in (("repeats", args.repeats, 1), ("epochs", args.epochs, 2)):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be {least} or more")
    for kind, given, known in (("case", args.cases, list(CASES)), ("peer", args.peers or (), peers)):
        for name in given:
            if name not in known:
                raise UsageError(unknown(kind, name, known))
    return args


def read(name: str | None) -> Dataset:
    """`name`'s images; without a name MNIST's, else the digits."""
    try:
        prepare_dataset(name or "mnist", default_data_dir())
    except DownloadError as error:
        if name is not None:
            raise
        print(f"{str(error).splitlines()[0]}; training on the digits instead")
        name = "digits"
    return read_dataset(name or "mnist", default_data_dir())


def contestants(asked: list[str] | None) -> tuple[list[str], dict[str, list[str]]]:
    """(who takes part, the others with what they lack)."""
    gpu = not processes.use_cpu()
    names = [
        name
        for name, peer in PEERS.items()
        if name == OURS or (name in asked if asked else gpu or not peer.gpu_only)
    ]
    left_out = {name: missing for name in names if (missing := PEERS[name].missing)}
    return [name for name in names if name not in left_out], left_out


def measure(case: Case, names: list[str], *, repeats: int, num_epochs: int) -> dict[str, Result]:
    found: dict[str, list[Trained]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, case)) for name in names]
        for worker in workers:
            worker.ready()
        for repeat in range(repeats):
            for index in torch.randperm(len(names), generator=generator(repeat)).tolist():
                found[names[index]].append(workers[index].train(repeat, num_epochs))
    return {name: Result(name, trained) for name, trained in found.items()}


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": processes.num_cores(),
        "gpu": None if processes.use_cpu() else torch.cuda.get_device_name(),
    }


def show(results: dict[str, Result]) -> None:
    ours = results[OURS]
    print(HEADER)
    for result in sorted(results.values(), key=lambda result: result.median):
        print(result.row(ours))
    for goal in goals(results):
        print(goal)
    print(flush=True)


def to_json(case: Case, results: dict[str, Result]) -> dict[str, Any]:
    return {
        "case": case.name,
        "hidden_sizes": case.hidden_sizes,
        "optimizer": case.optimizer,
        "lr": case.lr,
        "batch_size": case.batch_size,
        "images": case.num_images,
        "contestants": {name: result.to_json(results[OURS]) for name, result in results.items()},
        "goals": {goal.name: goal.to_json() for goal in goals(results)},
    }


def main() -> None:
    args = parse()
    data = read(args.dataset)
    names, left_out = contestants(args.peers)
    host = machine()
    print(f"{host['gpu'] or host['cpu']}, {host['cores']} cores, torch {torch.__version__}, {data.title}")
    for name, missing in left_out.items():
        print(f"left out: {name}, as {' and '.join(missing)} is not installed; make bench installs it")
    cases = []
    for case in (CASES[name].of(data) for name in args.cases):
        print(f"\n{case.name}: {case.title(data)}", flush=True)
        results = measure(case, names, repeats=args.repeats, num_epochs=args.epochs)
        show(results)
        cases.append(to_json(case, results))
    result = {
        "benchmark": "training",
        "date": time.strftime("%Y-%m-%d"),
        "machine": host,
        "versions": versions(),
        "dataset": data.name,
        "repeats": args.repeats,
        "epochs": args.epochs,
        "left_out": left_out,
        "cases": cases,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
