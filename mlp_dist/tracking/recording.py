"""The process that brings runs to MLflow and draws their pictures; `recorder.Recorder` starts it.

  python -m mlp_dist.tracking.recording FD

FD is a connection: a request is (what to do, its arguments), one of Recording's public methods, and each is
answered with what came of it. torch is never imported here: while the trainer does that, mlflow and
matplotlib are imported.
"""

import gc
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlp_dist.console import progress
from mlp_dist.tracking import plots as figures
from mlp_dist.tracking import store as client
from mlp_dist.tracking.delivery import CALM, Delivery, Outcome
from mlp_dist.tracking.system import Sampling

NICENESS = 10
"""The training's threads go before this process's where the cores do not suffice."""


class _Calm:
    """The first seconds of a run, in which nothing is drawn until the training waits for it."""

    def __init__(self) -> None:
        self._until, self._is_over = time.monotonic() + CALM, threading.Event()

    def wait(self) -> None:
        self._is_over.wait(max(0.0, self._until - time.monotonic()))

    def over(self) -> None:
        self._is_over.set()


class Recording:
    """The runs that are open, named by their directories."""

    def __init__(self) -> None:
        self._delivery = Delivery()
        self._calm: dict[Path, _Calm] = {}
        self._sampling = Sampling(self._delivery.changed)
        # One after the other: a run has ended when all its pictures are drawn.
        self._drawing = ThreadPoolExecutor(1, "drawing")

    def open(self, directory: Path, cwd: str, words: list[str], variables: dict[str, str]) -> None:
        """Where the trainer is now: MLflow's store may be named from there."""
        os.chdir(cwd)
        sys.argv = words
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            del os.environ[name]
        os.environ.update(variables)
        self._calm[directory] = _Calm()
        self._sampling.open(directory)
        self._delivery.opened(directory)

    def changed(self, directory: Path) -> None:
        self._delivery.changed(directory)

    def draw(self, directory: Path, name: str, shown: tuple[Any, ...]) -> None:
        self._drawing.submit(self._draw, directory, name, shown)

    def _draw(self, directory: Path, name: str, shown: tuple[Any, ...]) -> None:
        self._calm[directory].wait()
        try:
            figures.save(figures.FIGURES[name](*shown), directory / "figures" / f"{name}.png")
        # A picture less is no reason to lose the run.
        except Exception as error:
            progress.tell_beside(f"warning: the picture {name} cannot be drawn: {error!r}")
        self._delivery.changed(directory)

    def _end_calm(self) -> None:
        # The pictures of all runs are drawn one after the other.
        for calm in self._calm.values():
            calm.over()

    def settle(self, directory: Path, patience: float) -> "Future[Outcome]":
        """What MLflow has when all that was told until now is sent."""
        self._end_calm()
        return self._delivery.settle(directory, patience)

    def end(self, directory: Path, patience: float) -> "Future[Outcome]":
        self._end_calm()
        self._drawing.submit(self._sampling.close, directory).result()
        return self._delivery.settle(directory, patience)


def _get_ready() -> None:
    client.import_ahead()
    figures.warm_up()


def main() -> None:
    trainer = Connection(int(sys.argv[1]))
    os.nice(NICENESS)
    # What imports make stays to the end.
    gc.disable()
    # What fails here fails again, and is told, where it is needed.
    with suppress(Exception):
        _get_ready()
    gc.freeze()
    gc.enable()
    recording = Recording()
    # The trainer sends a request when it has the answer to the one before.
    with suppress(EOFError, OSError):
        while True:
            what, *arguments = trainer.recv()
            answer = getattr(recording, what)(*arguments)
            trainer.send(answer.result() if isinstance(answer, Future) else answer)
    # Runs that are open stay so: the trainer was killed, and may be resumed.
    os._exit(0)


if __name__ == "__main__":
    main()
