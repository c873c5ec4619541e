"""Measure served requests per second with this handler and with TorchServe's own image_classifier.

  python -m benchmarks.serving
  python -m benchmarks.serving --rounds 3 --seconds 1 --connections 32

Trains a model for one epoch and packages it as `python -m serve.package` does. Two TorchServes with the
same weights, batch size and settings run at once and are loaded in turn, in random order within each round,
by connections that are never idle, with test images as PNG. A sample of the answers is checked.

Requests per second, p50 and p99 latency, CPU seconds of the server's processes per 1000 requests, and the
share of a core that the load generator used ("load busy") are medians over the rounds. The last line on
stdout is one JSON object.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import at_least
from benchmarks import serving_servers as servers
from benchmarks.peers import versions
from benchmarks.serving_load import drive
from benchmarks.training import machine
from mlp_dist.console import command
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ServerError
from mlp_dist.core.image import encode_png
from mlp_dist.core.spec import GOLDEN
from mlp_dist.data.batches import generator
from mlp_dist.data.datasets import default_data_dir, read_dataset

CONNECTIONS = (1, 8, 16, 32, 64)
OURS, CLASSIFIER = "mlp_dist", "image_classifier"
NUM_IMAGES = 64
WARM_UP = 3
"""Loads of each contestant before the first round."""
TOLERANCE = 1e-5
"""Of a probability; answers are rounded to six digits."""

COLUMNS = "{:<18} {:>5} {:>10} {:>9} {:>9} {:>11} {:>10}"


@dataclass(frozen=True)
class Window:
    """One contestant under one load: requests per second, milliseconds, CPU seconds per 1000 requests."""

    rate: float
    p50: float
    p99: float
    cpu: float
    busy: float


Windows = dict[tuple[str, int], list[Window]]
"""One window per round, by contestant and number of connections."""


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=at_least(1), default=5, metavar="N", help="(5)")
    parser.add_argument("--seconds", type=at_least(0.5), default=2.0, metavar="S", help="per load (2)")
    parser.add_argument("--connections", type=at_least(1), nargs="+", default=CONNECTIONS, metavar="N")
    return parser.parse_args()


class Loader:
    """Loads servers with test images from a process of its own, and checks what they answer."""

    def __init__(self, pool: ProcessPoolExecutor, packaged: servers.Packaged) -> None:
        self.pool = pool
        bundle = load_bundle(packaged.bundle)
        images = read_dataset(packaged.dataset, default_data_dir()).test.images[:NUM_IMAGES]
        self.files = [encode_png(image) for image in images]
        self.answers = [bundle.answer(file) for file in self.files]

    def check(self, samples: list[tuple[int, str]], name: str) -> None:
        """Raises ServerError if an answer differs from the model's."""
        for index, body in samples:
            expected, answer = self.answers[index], json.loads(body)
            if set(answer) != set(expected) or any(
                abs(answer[label] - value) > TOLERANCE for label, value in expected.items()
            ):
                raise ServerError(f"{name} answered {answer}, expected {expected}")

    def load(self, name: str, server: servers.Served, connections: int, seconds: float) -> Window:
        requests = [server.request(file) for file in self.files]
        before = server.cpu()
        loaded = self.pool.submit(drive, server.port, requests, connections, seconds).result()
        cpu = server.cpu() - before
        self.check(loaded.samples, name)
        percentiles = statistics.quantiles(loaded.latencies, n=100)
        return Window(
            rate=len(loaded.latencies) / loaded.seconds,
            p50=1000 * percentiles[49],
            p99=1000 * percentiles[98],
            cpu=1000 * cpu / loaded.answers,
            busy=loaded.busy,
        )


def measure(served: dict[str, servers.Served], loader: Loader, args: argparse.Namespace) -> Windows:
    for name, server in served.items():
        loader.load(name, server, max(args.connections), WARM_UP * args.seconds)
    names = list(served)
    found: Windows = {(name, connections): [] for connections in args.connections for name in names}
    for number in range(args.rounds):
        for connections in args.connections:
            for index in torch.randperm(len(names), generator=generator(number)).tolist():
                name = names[index]
                window = loader.load(name, served[name], connections, args.seconds)
                found[name, connections].append(window)
    return found


def medians(windows: list[Window]) -> Window:
    columns = zip(*(asdict(window).values() for window in windows), strict=True)
    return Window(*map(statistics.median, columns))


def main() -> None:
    args = parse()
    host = machine()
    with tempfile.TemporaryDirectory(prefix="mlp-serving-") as temporary, ExitStack() as stack:
        directory = Path(temporary)
        packaged = servers.train(directory)
        print(
            f"{host['cpu']}, {host['cores']} cores, torch {torch.__version__}, {packaged.dataset}", flush=True
        )
        golden = (packaged.bundle / GOLDEN).read_bytes()
        served = {OURS: stack.enter_context(servers.torchserve(packaged.mar, golden))}
        mar = servers.classifier(packaged, directory / "classifier")
        served[CLASSIFIER] = stack.enter_context(servers.torchserve(mar, golden))
        pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        windows = measure(served, Loader(pool, packaged), args)
    print(COLUMNS.format("", "conns", "requests/s", "p50 ms", "p99 ms", "CPU s/1000", "load busy"))
    cells = {place: medians(each) for place, each in windows.items()}
    for place, cell in cells.items():
        figures = (f"{cell.rate:.0f}", f"{cell.p50:.2f}", f"{cell.p99:.2f}", f"{cell.cpu:.3f}")
        print(COLUMNS.format(*place, *figures, f"{cell.busy:.0%}"))
    result: dict[str, Any] = {
        "benchmark": "serving",
        "date": time.strftime("%Y-%m-%d"),
        "machine": host,
        "versions": versions("torch", "torchserve", "torchvision", "pillow"),
        "dataset": packaged.dataset,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "cells": [
            {"name": place[0], "connections": place[1], **asdict(cell)}
            | {"rates": [window.rate for window in windows[place]]}
            for place, cell in cells.items()
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
