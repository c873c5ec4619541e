"""How fast the model is served: by this handler, TorchServe without one and its own, FastAPI and LitServe.

  python -m benchmarks.serving
  python -m benchmarks.serving --only image_classifier --rounds 3 --seconds 1

A model is trained for it and packaged as `python -m serve.package` does. On the archive's batch size and
TorchServe's settings are served: this handler ("mlp_dist"); one that does nothing and answers the same bytes
("ceiling"); TorchServe's image_classifier with the same weights. FastAPI and LitServe have the same model and
mlp_dist's own preprocessing. All run at once and are asked in turn, in an order drawn anew in each round, by
connections that are never idle, with pictures of the test set; answers are looked at.

Requests a second, p50 and p99 of a request, CPU seconds of all the server's processes for 1000 requests, and
the share of a core that the load generator used ("load busy") are medians over the rounds, ratios those of
the medians. Then, in turn: how long TorchServe takes to its first right answer and a process to import torch,
and their memory. Contestants that are not installed are left out; `make bench` installs them. The last line
on stdout is one JSON object.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import serving_archives as archives
from benchmarks import serving_load as load
from benchmarks import serving_results as results
from benchmarks import serving_servers as servers
from benchmarks import serving_start as start
from benchmarks.serving_results import CEILING, FASTAPI, LITSERVE, OURS, STOCK, UNBATCHED
from benchmarks.training import machine
from mlp_dist.console import command
from mlp_dist.core.bundle import GOLDEN, load_bundle
from mlp_dist.core.errors import ServerError, UsageError, unknown
from mlp_dist.core.image import encode_png
from mlp_dist.data.batches import generator
from mlp_dist.data.datasets import default_data_dir, read_dataset

CONNECTIONS = (1, 8, 16, 32, 64)
OTHERS = (UNBATCHED, STOCK, FASTAPI, LITSERVE)
NUM_IMAGES = 64
TOLERANCE = 1e-5
"""Of a probability; answers are rounded to six digits."""


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(5)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="of each contestant and load in a round (2)"
    )
    parser.add_argument("--warm-up", type=float, default=6.0, metavar="S", help="of each before all (6)")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS, metavar="N")
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help=f"beside {OURS} and {CEILING}, of {', '.join(OTHERS)} (all)"
    )
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="how often a start is timed (3)")
    args = parser.parse_args()
    for name, least in (("rounds", 1), ("seconds", 0.5), ("warm_up", 0.5), ("starts", 1)):
        value = getattr(args, name)
        if not math.isfinite(value) or value < least:
            raise UsageError(f"{name.replace('_', '-')} is {value}; it must be {least} or more")
    if min(args.connections) < 1:
        raise UsageError(f"connections is {min(args.connections)}; it must be 1 or more")
    for name in args.only or ():
        if name not in OTHERS:
            raise UsageError(unknown("contestant", name, OTHERS))
    return args


class Pictures:
    """Test images as PNG files, and the probabilities that the model has for them."""

    def __init__(self, packaged: archives.Packaged) -> None:
        self.bundle = load_bundle(packaged.bundle)
        images = read_dataset(packaged.dataset, default_data_dir()).test.images[:NUM_IMAGES]
        self.files = [encode_png(image) for image in images]
        self.answers = [self.bundle.answer(file) for file in self.files]

    def check(self, samples: list[tuple[int, str]], name: str) -> None:
        """Raise ServerError where an answer is another than the model's."""
        for which, body in samples:
            # The ceiling has one answer for all.
            expected, answer = self.answers[0 if name == CEILING else which], json.loads(body)
            if set(answer) != set(expected) or any(
                abs(answer[label] - value) > TOLERANCE for label, value in expected.items()
            ):
                raise ServerError(f"{name} answers {answer} where {expected} is right")


def start_all(
    stack: ExitStack, packaged: archives.Packaged, pictures: Pictures, names: list[str], directory: Path
) -> dict[str, servers.Served]:
    golden = (packaged.bundle / GOLDEN).read_bytes()
    served = {OURS: stack.enter_context(servers.torchserve(packaged.mar, golden))}
    body, headers = served[OURS].ask(pictures.files[0])
    for name in names:
        place = directory / name.replace(" ", "_") / "mlp.mar"
        if name == CEILING:
            archives.ceiling(packaged, place, body, headers)
        elif name == STOCK:
            archives.stock(packaged, place)
        elif name == UNBATCHED:
            archives.unbatched(packaged, place)
        else:
            served[name] = stack.enter_context(servers.rival(name, packaged, golden))
            continue
        served[name] = stack.enter_context(servers.torchserve(place, golden))
    return served


def window(
    served: servers.Served, name: str, pictures: Pictures, connections: int, seconds: float
) -> results.Window:
    requests = [served.request(file) for file in pictures.files]
    before = served.cpu()
    loaded = load.run(load.Load(served.port, requests, connections, seconds))
    cpu = served.cpu() - before
    pictures.check(loaded.samples, name)
    percentiles = statistics.quantiles(loaded.latencies, n=100)
    return results.Window(
        rate=len(loaded.latencies) / loaded.seconds,
        p50=1000 * percentiles[49],
        p99=1000 * percentiles[98],
        cpu=1000 * cpu / loaded.answers,
        busy=loaded.busy,
    )


def measure(served: dict[str, servers.Served], pictures: Pictures, args: argparse.Namespace) -> results.Cells:
    for name, server in served.items():
        window(server, name, pictures, 1 if name == UNBATCHED else results.AT, args.warm_up)
    found: dict[tuple[str, int], list[results.Window]] = {}
    for number in range(args.rounds):
        for connections in args.connections:
            for index in torch.randperm(len(served), generator=generator(number)).tolist():
                name = list(served)[index]
                if name != UNBATCHED or connections == 1:
                    windows = found.setdefault((name, connections), [])
                    windows.append(window(served[name], name, pictures, connections, args.seconds))
    order = list(served)
    cells = {key: results.Cell(windows) for key, windows in found.items()}
    return dict(sorted(cells.items(), key=lambda item: (item[0][1], order.index(item[0][0]))))


def show(cells: results.Cells, memory: dict[str, tuple[float, float]], reached: list[results.Goal]) -> None:
    print(results.HEADER)
    for row in results.rows(cells):
        print(row)
    print(f"\n{'':<24} {'all its processes, MiB':>24} {'that of the model, MiB':>24}")
    for name, (everything, worker) in memory.items():
        print(f"{name:<24} {everything:>24.0f} {worker:>24.0f}")
    print()
    for goal in reached:
        print(goal)


def main() -> None:
    args = parse()
    asked = [name for name in OTHERS if args.only is None or name in args.only]
    left_out = {name: lacks for name in asked if (lacks := servers.missing(name))}
    for name, lacks in left_out.items():
        print(f"left out: {name}, as {' and '.join(lacks)} is not installed; make bench installs it")
    host = machine()
    with tempfile.TemporaryDirectory(prefix="mlp-serving-") as temporary, ExitStack() as stack:
        directory = Path(temporary)
        packaged = archives.train(directory)
        pictures = Pictures(packaged)
        names = [CEILING, *(name for name in asked if name not in left_out)]
        print(
            f"{host['cpu']}, {host['cores']} cores, torch {torch.__version__}, {packaged.dataset}", flush=True
        )
        served = start_all(stack, packaged, pictures, names, directory)
        cells = measure(served, pictures, args)
        memory = {name: each.memory() for name, each in served.items()}
        stack.close()
        started = start.measure(packaged.mar, (packaged.bundle / GOLDEN).read_bytes(), args.starts)
    reached = [
        *results.goals(cells),
        results.Goal(
            "start to the first answer / import of torch",
            started.ready_seconds / started.import_seconds,
            "<=",
            results.READY_GOAL,
        ),
        results.Goal(
            "memory of the worker / of a process that imported torch",
            memory[OURS][1] / started.import_memory,
            "<=",
            results.MEMORY_GOAL,
        ),
    ]
    show(cells, memory, reached)
    result: dict[str, Any] = {
        "benchmark": "serving",
        "date": time.strftime("%Y-%m-%d"),
        "machine": host,
        "versions": servers.versions(),
        "dataset": packaged.dataset,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "left_out": left_out,
        "cells": [{"name": name, "connections": n, **cell.to_json()} for (name, n), cell in cells.items()],
        "memory": {name: {"tree": tree, "worker": worker} for name, (tree, worker) in memory.items()},
        "start": asdict(started),
        "goals": [goal.to_json() for goal in reached],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
