"""What the machine does meanwhile: samples in system.jsonl, by the names of MLflow's system metrics."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlp_dist.tracking.run_dir import SYSTEM, now_ms

OFTEN, SELDOM, SETTLED = 1.0, 10.0, 60.0
"""Seconds between two samples, those of a run that is older than SETTLED, and SETTLED."""


def _monitors() -> list[Any]:
    """MLflow's own, those that work here."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = []
    kinds: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
    for kind in kinds:
        # There may be no GPU, or nothing that counts.
        with suppress(Exception):
            found.append(kind())
    return found


def _sample(monitors: list[Any]) -> dict[str, float]:
    sample: dict[str, float] = {"timestamp_ms": now_ms()}
    for monitor in monitors:
        monitor.collect_metrics()
        sample |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return sample


class Sampling:
    """Samples for the runs that are open; of each at its start, now and then, and at its end."""

    def __init__(self, changed: Callable[[Path], None]) -> None:
        self._changed = changed
        self._opened: dict[Path, float] = {}
        self._monitors = _monitors()
        # The share of the processor is counted from the sample before, in the same thread.
        self._thread = ThreadPoolExecutor(1, "sampling")
        self._thread.submit(_sample, self._monitors)
        threading.Thread(target=self._work, daemon=True).start()

    def open(self, directory: Path) -> None:
        self._opened[directory] = time.monotonic()
        self._thread.submit(self._write, [directory])

    def close(self, directory: Path) -> None:
        if self._opened.pop(directory, None) is not None:
            self._thread.submit(self._write, [directory]).result()

    def _work(self) -> None:
        while True:
            youngest = max(self._opened.values(), default=0.0)
            time.sleep(OFTEN if time.monotonic() - youngest < SETTLED else SELDOM)
            directories = list(self._opened)
            self._thread.submit(self._write, directories).result()
            for directory in directories:
                self._changed(directory)

    def _write(self, directories: list[Path]) -> None:
        if not directories:
            return
        line = json.dumps(_sample(self._monitors)) + "\n"
        for directory in directories:
            # The directory may be gone, or the disk full: the run is more than this.
            with suppress(OSError), (directory / SYSTEM).open("a") as file:
                file.write(line)
