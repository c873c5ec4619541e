"""What recording a training in MLflow costs it: the same training with and without, in turn.

  python -m benchmarks.tracking
  python -m benchmarks.tracking --repeats 10 --epochs 20

Trains the default recipe on MNIST by `accelerate launch`, each time in a new process; "without" has in place
of the recorder one that does nothing. Runs go into one MLflow store, which has some; a new one has first to
be made, beside the training. "holds" is how long the training's own thread waits for what tells of a step or
of an epoch: in the mean, but for one in a thousand, at most.

The ratios are of the seconds that the steps of all epochs take. Where nothing else runs the median of the
pairs is the one that counts; "of the fastest" takes each epoch from the training that did it fastest, which
other work disturbs least. The last line on stdout is one JSON object.
"""

import json
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import run
from mlp_dist.console import command, processes
from mlp_dist.core.errors import UsageError
from mlp_dist.data.datasets import default_data_dir, prepare_dataset

RATIO_GOAL, STEP_GOAL_MS = 1.02, 1.0
CASES: dict[str, tuple[str, ...]] = {
    "the default recipe": (),
    "with --log-every 1": ("--log-every", "1"),
    "into a new store": (),
}
WHICH = ("with", "without")


@dataclass
class Training:
    """Seconds: of each epoch's steps, of the whole command, and held by what tells of it."""

    epochs: list[float]
    whole: float
    held_steps: list[float]
    held_epochs: list[float]


def train(which: str, flags: list[str], store: Path) -> Training:
    """A training in `store`, where its run goes into `mlflow.db`."""
    with tempfile.TemporaryDirectory(dir=store) as name:
        held, output_dir = Path(name, "held.json"), Path(name, "run")
        words = ["accelerate", "launch", "--quiet", "--num_processes", "1", "--num_machines", "1"]
        words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--module"]
        words += ["benchmarks.tracking_worker", which, str(held), "--output-dir", str(output_dir), *flags]
        whole, _ = run(words, store, ACCELERATE_USE_CPU="true")
        records = map(json.loads, (output_dir / "metrics.jsonl").read_text().splitlines())
        seconds = [record["train_seconds"] for record in records]
        waited = json.loads(held.read_text())
        return Training(seconds, whole, waited["steps"], waited["epochs"])


def train_in(store: Path | None, which: str, flags: list[str]) -> Training:
    """A training in `store`, or in a new one."""
    if store is not None:
        return train(which, flags, store)
    with tempfile.TemporaryDirectory() as name:
        return train(which, flags, Path(name))


def measure(name: str, flags: list[str], repeats: int, store: Path) -> dict[str, Any]:
    where = None if name == "into a new store" else store
    pairs = []
    for number in range(repeats):
        # Whatever the first of a pair finds differently, both find as often.
        order = WHICH if number % 2 else WHICH[::-1]
        pairs.append({which: train_in(where, which, [*CASES[name], *flags]) for which in order})
    found: dict[str, Any] = {"case": name}
    fastest = {}
    for which in WHICH:
        of_each = [pair[which] for pair in pairs]
        by_number = list(zip(*(each.epochs for each in of_each), strict=True))
        fastest[which] = sum(map(min, by_number))
        found |= {
            f"first epoch {which}": statistics.median(by_number[0]),
            f"epochs {which}": statistics.median(sum(each.epochs) for each in of_each),
            f"command {which}": statistics.median(each.whole for each in of_each),
        }
    for unit in ("step", "epoch"):
        held = sorted(1000 * each for pair in pairs for each in getattr(pair["with"], f"held_{unit}s"))
        found[f"{unit} held ms"] = {
            "mean": statistics.fmean(held),
            "99.9%": held[int(0.999 * len(held))],
            "most": held[-1],
        }
    ratios = [sum(pair["with"].epochs) / sum(pair["without"].epochs) for pair in pairs]
    found |= {"ratios": ratios, "median ratio": statistics.median(ratios)}
    return {**found, "ratio": fastest["with"] / fastest["without"]}


def show(found: dict[str, Any]) -> None:
    print(f"\n{found['case']:<24} {'with':>10} {'without':>10}")
    for name in ("first epoch", "epochs", "command"):
        print(f"  {name:<22} {found[f'{name} with']:>8.3f} s {found[f'{name} without']:>8.3f} s")
    print(f"  {'':<22} {'mean':>10} {'99.9%':>10} {'most':>10}")
    for unit in ("step", "epoch"):
        held = "".join(f" {value:>7.3f} ms" for value in found[f"{unit} held ms"].values())
        print(f"  {f'holds each {unit}':<22}{held}")
    low, high = min(found["ratios"]), max(found["ratios"])
    print(
        f"  of pairs {found['median ratio']:.3f} [{low:.3f}-{high:.3f}], of the fastest {found['ratio']:.3f}",
        flush=True,
    )


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="pairs of trainings (5)")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="of each training (5)")
    parser.add_argument("--dataset", default="mnist", metavar="NAME", help="(mnist)")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), metavar="DIR")
    args = parser.parse_args()
    for name in ("repeats", "epochs"):
        if getattr(args, name) < 1:
            raise UsageError(f"{name} is {getattr(args, name)}; it must be 1 or more")
    data_dir = args.data_dir.absolute()
    prepare_dataset(args.dataset, data_dir)
    flags = ["--dataset", args.dataset, "--data-dir", str(data_dir), "--epochs", str(args.epochs)]
    pairs = f"{args.repeats} pair{'s' * (args.repeats > 1)} of trainings of {args.epochs} epochs"
    print(f"{args.dataset}, {processes.num_cores()} cores, {pairs}")
    cases = []
    with tempfile.TemporaryDirectory() as name:
        store = Path(name)
        train("with", flags, store)
        for case in CASES:
            cases.append(measure(case, flags, args.repeats, store))
            show(cases[-1])
    goals = {
        "ratio": cases[0]["ratio"] <= RATIO_GOAL,
        "held": all(case["step held ms"]["99.9%"] < STEP_GOAL_MS for case in cases),
    }
    print(
        f"\nwanted: a ratio of at most {RATIO_GOAL}, and steps held for less than {STEP_GOAL_MS:g} ms (99.9%)"
    )
    print(json.dumps({"benchmark": "tracking", "cores": os.cpu_count(), "cases": cases, "goals": goals}))


if __name__ == "__main__":
    command.run(main)
