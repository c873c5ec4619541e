"""What is left to send of runs that have ended, or were killed."""

import os
from pathlib import Path

from mlp_dist.core.errors import UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.tracking.run_dir import KILLED, RECORD, RUNNING, RunRecord
from mlp_dist.tracking.upload import send


def runs_in(directory: Path) -> list[Path]:
    """The directories of the run there and of those nested in it, from above.

    Raises UsageError where there is none.
    """
    found = sorted(path.parent.absolute() for path in directory.rglob(RECORD))
    if not found:
        raise UsageError(
            f"{directory} holds no run: there is no {RECORD} in it; name a training's --output-dir"
        )
    return found


def sync(directory: Path) -> tuple[RunRecord, str]:
    """Bring MLflow to what is in the directory of one run; returns its record and its id there.

    A run that says it is running, and that no process holds, was killed: it ends KILLED, when it last wrote.
    Raises UsageError where a training runs there, TrackingError where MLflow cannot take it.
    """
    lock = try_to_lock(directory)
    if lock is None:
        raise UsageError(f"a training runs in {directory}: it sends by itself")
    try:
        record = RunRecord.load(directory)
        if record.status == RUNNING:
            record.end(KILLED, _last_written_ms(directory))
            record.save(directory)
        return record, send(directory)
    finally:
        os.close(lock)


def _last_written_ms(directory: Path) -> int:
    return max(path.stat().st_mtime_ns for path in directory.iterdir() if path.is_file()) // 1_000_000
