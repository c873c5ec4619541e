"""Each contestant runs in its own process and directory, so that threads and caches are not shared.

A process serves one case; whatever it compiled stays compiled between repeats. Its output is discarded.
"""

import multiprocessing
import os
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peers import PEERS
from benchmarks.peers.cases import Case, Timing, Train
from mlp_dist.data.datasets import default_data_dir

_train: Train
"""The contestant of this process."""


@contextmanager
def contestant(name: str, case: Case) -> Iterator[Train]:
    """The peer `name`, prepared in a process of its own, which ends when the context is left."""
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as directory, ProcessPoolExecutor(1, context) as pool:
        pool.submit(_prepare, name, case, Path(directory), default_data_dir().absolute()).result()
        yield lambda seed, num_epochs: pool.submit(_run, seed, num_epochs).result()


def _prepare(name: str, case: Case, directory: Path, data_dir: Path) -> None:
    global _train
    os.chdir(directory)
    os.environ["MLP_DIST_DATA"] = str(data_dir)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    _train = pkgutil.resolve_name(f"benchmarks.peers.{PEERS[name].prepare}")(case)


def _run(seed: int, num_epochs: int) -> Timing:
    return _train(seed, num_epochs)
