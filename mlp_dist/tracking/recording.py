"""The process that draws runs' pictures and uploads runs to MLflow; `recorder.Recorder` starts it.

  python -m mlp_dist.tracking.recording FD

FD is a connection. A request is (method of Recording, arguments); the answer is what the method returned.
torch is not imported here: mlflow and matplotlib are imported while the trainer imports torch.
"""

import gc
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlp_dist.tracking import plots, store
from mlp_dist.tracking.delivery import CALM, Delivery, Outcome

SYSTEM_METRICS = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own switch, which `mlflow.enable_system_metrics_logging()` sets."""

NICENESS = 10
"""The training's threads take precedence."""


class Recording:
    """The open runs, identified by their directories."""

    def __init__(self) -> None:
        self._delivery = Delivery(self._monitor)
        self._may_draw = threading.Event()
        self._monitored: set[str] = set()
        self._drawing = ThreadPoolExecutor(1, "drawing")

    def open(self, directory: Path) -> None:
        self._may_draw.clear()
        self._opened = time.monotonic()
        self._delivery.opened(directory)

    def changed(self, directory: Path) -> None:
        self._delivery.changed(directory)
        self._drawing.submit(self._draw, directory)

    def _draw(self, directory: Path) -> None:
        self._may_draw.wait(max(0.0, self._opened + CALM - time.monotonic()))
        plots.draw(directory)
        self._delivery.changed(directory)

    def settle(self, directory: Path, patience: float) -> "Future[Outcome]":
        """Upload everything recorded so far."""
        self._may_draw.set()
        return self._delivery.settle(directory, patience)

    def end(self, directory: Path, patience: float) -> "Future[Outcome]":
        """Draw the remaining pictures, then upload the rest."""
        self._may_draw.set()
        self._drawing.submit(lambda: None).result()
        return self._delivery.settle(directory, patience)

    def _monitor(self, directory: Path, run_id: str) -> None:
        """Start MLflow's system metrics for the run, if the user asked for them.

        The monitor ends with the run, or at the first request that fails.
        """
        is_wanted = os.environ.get(SYSTEM_METRICS, "").lower() in ("true", "1")
        if is_wanted and run_id not in self._monitored:
            self._monitored.add(run_id)
            monitors: Any = import_module("mlflow.system_metrics.system_metrics_monitor")
            monitors.SystemMetricsMonitor(run_id, resume_logging=True).start()


def _warm_up() -> None:
    store.import_ahead()
    plots.warm_up()


def main() -> None:
    trainer = Connection(int(sys.argv[1]))
    os.nice(NICENESS)
    # Imported modules are never collected; scanning them repeatedly costs time.
    gc.disable()
    # A failure here is repeated, and reported, when the module is used.
    with suppress(Exception):
        _warm_up()
    gc.freeze()
    gc.enable()
    recording = Recording()
    # The trainer sends one request at a time. At the end of the connection it was killed: its runs stay open,
    # since it may be resumed.
    with suppress(EOFError, OSError):
        while True:
            what, *arguments = trainer.recv()
            answer = getattr(recording, what)(*arguments)
            trainer.send(answer.result() if isinstance(answer, Future) else answer)
    os._exit(0)


if __name__ == "__main__":
    main()
