"""The log of TorchServe and its workers: printing it, and the error of a dead worker."""

import re
import subprocess
import time
from itertools import takewhile
from pathlib import Path

_PAUSE = 0.2

_LAST_LINES_SECONDS = 10.0
"""Wait for the lines after a worker's death. A killed worker writes none."""

_WORKER_LINE = "MODEL_LOG - "
_LOAD_FAILED = "Load model failed"
_CAUGHT = re.compile(r"Failed to load model .*, exception|Load model .* OOM, exception")
"""Written by the worker before a RuntimeError or MemoryError, which TorchServe reports only as a code."""
_DIED = "Backend worker process died."
_NEXT_WORKER = "s_name_part"


def print_log(log: Path, *, follow: bool) -> None:
    """Print the log; with `follow`, print new lines until interrupted, also after a rotation."""
    subprocess.run(["tail", "--lines=+1", *(["-F"] if follow else []), str(log)], check=False)


def load_failure(log: Path, version: str = "", offset: int = 0) -> str | None:
    """The last lines of a version's worker if it died while it loaded the model, else None.

    Reads from `offset` on and waits until the error is complete.
    """
    if not any(_LOAD_FAILED in line or _CAUGHT.search(line) for line in _lines(log, version, offset)):
        return None
    # The worker's traceback arrives line by line, after TorchServe's report of its death.
    before: list[str] = []
    deadline = time.monotonic() + _LAST_LINES_SECONDS
    while time.monotonic() < deadline:
        lines = _lines(log, version, offset)
        if lines == before and any(_DIED in line for line in lines):
            break
        before = lines
        time.sleep(_PAUSE)
    return last_lines(log, version, offset)


def last_lines(log: Path, version: str = "", offset: int = 0, number: int = 25) -> str:
    """The worker's error if it died, else the last lines of the worker or the server."""
    everything = _lines(log, version, offset)
    worker = [line.partition(_WORKER_LINE)[2] for line in everything if _WORKER_LINE in line]
    if _DIED in worker:
        lines = worker[: worker.index(_DIED)]
        if caught := [place for place, line in enumerate(lines) if _CAUGHT.match(line)]:
            return "\n".join(lines[caught[0] :])
        # Everything, since a missing import in the handler is reported before TorchServe's own error.
        ended = worker[worker.index(_DIED) + 1 :]
        return "\n".join(takewhile(lambda line: not line.startswith(_NEXT_WORKER), ended))
    return "\n".join((worker or everything)[-number:])


def _lines(log: Path, version: str, offset: int) -> list[str]:
    """Lines of a version's worker, which name its thread as in W-9000-mlp_1.0-stdout; "": all lines."""
    with log.open("rb") as file:
        # A file shorter than `offset` is new: the log was rotated.
        file.seek(offset if offset <= log.stat().st_size else 0)
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if not version or f"_{version}-" in line or f"_{version} " in line]
