"""For benchmarks/serving.py: how soon TorchServe is ready, beside what importing torch takes and holds."""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_servers import torchserve

_IMPORT = "import torch; print(open('/proc/self/statm').read().split()[1], flush=True)"
_PAGE = 4096


@dataclass(frozen=True)
class Start:
    """Seconds and MiB, medians: to import torch and to the first right answer of TorchServe."""

    import_seconds: float
    ready_seconds: float
    import_memory: float


def importing_torch() -> tuple[float, float]:
    """(seconds, resident MiB) of a process that imports torch and does nothing else."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True)
    return time.perf_counter() - started, int(done.stdout) * _PAGE / 2**20


def measure(mar: Path, golden: bytes, rounds: int) -> Start:
    imports, starts = [], []
    for _ in range(rounds):
        imports.append(importing_torch())
        started = time.perf_counter()
        with torchserve(mar, golden):
            starts.append(time.perf_counter() - started)
    seconds, memory = (statistics.median(values) for values in zip(*imports, strict=True))
    return Start(seconds, statistics.median(starts), memory)
