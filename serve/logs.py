"""What TorchServe and its workers wrote: printed as it grows, and asked why a worker died."""

import re
import sys
import time
from itertools import takewhile
from pathlib import Path

_PAUSE = 0.2

_LAST_WORDS_SECONDS = 10.0
"""How long they may take; a worker that was killed has none."""

_WORKER_LINE = "MODEL_LOG - "
_LOAD_FAILED = "Load model failed"
_CAUGHT = re.compile(r"Failed to load model .*, exception|Load model .* OOM, exception")
"""What a worker says before a RuntimeError or MemoryError, of which it tells TorchServe only a number."""
_DIED = "Backend worker process died."
_NEXT_WORKER = "s_name_part"


def print_log(log: Path, *, follow: bool) -> None:
    """Print what is in `log`, and with `follow` what comes, until it is interrupted."""
    file = log.open(errors="replace")
    try:
        while True:
            sys.stdout.write(file.read())
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(_PAUSE)
            if log.exists() and not log.samefile(f"/dev/fd/{file.fileno()}"):
                # It was rolled over: the rest of the old file, then the new one.
                sys.stdout.write(file.read())
                file.close()
                file = log.open(errors="replace")
    finally:
        file.close()


def why_loading_failed(log: Path, version: str = "", offset: int = 0) -> str | None:
    """What the worker of a version said at its end, if one died while it loaded the model, else None.

    Only what stands from `offset` on counts. Waits until all of it is written.
    """
    if not any(_LOAD_FAILED in line or _CAUGHT.search(line) for line in _lines(log, version, offset)):
        return None
    # What a worker says at its end comes after TorchServe has told that it died, and line by line.
    before: list[str] = []
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < deadline:
        said = _lines(log, version, offset)
        if said == before and any(_DIED in line for line in said):
            break
        before = said
        time.sleep(_PAUSE)
    return last_words(log, version, offset)


def last_words(log: Path, version: str = "", offset: int = 0, lines: int = 25) -> str:
    """How the worker ended, where it came so far; else the last lines of the server."""
    everything = _lines(log, version, offset)
    worker = [line.partition(_WORKER_LINE)[2] for line in everything if _WORKER_LINE in line]
    if _DIED in worker:
        said = worker[: worker.index(_DIED)]
        if caught := [number for number, line in enumerate(said) if _CAUGHT.match(line)]:
            return "\n".join(said[caught[0] :])
        # Whole, since TorchServe tells of a handler's missing import only before an error of its own.
        ended = worker[worker.index(_DIED) + 1 :]
        return "\n".join(takewhile(lambda line: not line.startswith(_NEXT_WORKER), ended))
    return "\n".join((worker or everything)[-lines:])


def _lines(log: Path, version: str, offset: int) -> list[str]:
    """Those of a version's worker bear its name: W-9000-mlp_1.0-stdout; all where it is ""."""
    with log.open("rb") as file:
        # What is shorter than it was is a new file: the old one was rolled over.
        file.seek(offset if offset <= log.stat().st_size else 0)
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if not version or f"_{version}-" in line or f"_{version} " in line]
