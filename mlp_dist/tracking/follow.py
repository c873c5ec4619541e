"""Brings MLflow up to date beside a training: a process that uploads the run's directory again and again.

The training starts it and waits for its end; all it is told is in the directory. torch is not imported in it:
it imports mlflow and matplotlib while the training imports torch.
"""

import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from mlp_dist.console import progress
from mlp_dist.console.process import STOP_SIGNALS
from mlp_dist.core.errors import MlpDistError
from mlp_dist.tracking.run_dir import (
    FAILED,
    FINISHED,
    KILLED,
    METRICS,
    PREDICTIONS,
    RECORD,
    SAMPLES,
    RunRecord,
    has_record,
    is_uploaded,
    runs_in,
)

PATIENCE, STUCK = 10.0, 60.0
"""Seconds without progress, after a run's end, in which an MLflow that cannot be reached is tried again, and
in which one that raises no error is waited for: a database may hang."""

_IDLE = 0.2
"""Seconds of processor time that count as progress."""

_CALM = 3.0
"""Seconds at the start of a run without uploads, which would slow a short training."""

_PACE, _SHARE = 1.0, 0.01
"""Least seconds between two uploads, and the share of one core they may use during a training."""

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
"""Seconds between two attempts; each wait is twice the one before."""

_POLL = 0.05
_NICENESS = 5
_TRAINING = "MLP_DIST_TRAINING"
"""Passes the training's process id to its follower, which may find no parent when it starts."""

_SYSTEM_METRICS = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own switch, which `mlflow.enable_system_metrics_logging()` sets."""


class Follower:
    """The training's side: the process that follows `directory`, which need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        # Signals that stop the training reach all its processes; this one must stay to upload the rest.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        # The process must find the same modules as this one.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        try:
            return subprocess.Popen(
                [sys.executable, "-u", "-P", "-m", "mlp_dist.sync", "--follow", str(self.directory)],
                stdin=subprocess.DEVNULL,
                # stdout is for the training's result.
                stdout=2,
                env={
                    # It repeats uploads itself.
                    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                    **os.environ,
                    "PYTHONPATH": path,
                    # Jupyter exports one that this Python may lack.
                    "MPLBACKEND": "agg",
                    _TRAINING: str(os.getpid()),
                },
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def wait(self) -> None:
        """Wait until MLflow has the run, which has ended; say so on stderr if it cannot be reached."""
        with progress.stages("uploading the run to MLflow"):
            code = self._process.wait()
            # It was killed, perhaps for its memory, or saw only the end before a resumption.
            if code != 1 and not is_uploaded(self.directory):
                code = self._start().wait()
        if code != 0:
            command = f"python -m mlp_dist.sync {shlex.quote(str(self.directory))}"
            print(f"MLflow does not have all of this run; upload the rest with: {command}", file=sys.stderr)

    def stop(self) -> None:
        """End it before a run has begun."""
        self._process.kill()
        self._process.wait()


@contextmanager
def followed(directory: Path, record: RunRecord, follower: Follower | None) -> Iterator[None]:
    """Write the record; end the run with the context, and wait until MLflow has it.

    It ends as FINISHED, KILLED on KeyboardInterrupt, or FAILED, with the error's first line as the reason.
    """
    record.save(directory)
    try:
        yield
        record.end(FINISHED)
        record.save(directory)
    except BaseException as error:
        is_stop = isinstance(error, KeyboardInterrupt)
        record.end(KILLED if is_stop else FAILED, reason=next(iter(str(error).splitlines()), repr(error)))
        # A full disk must not hide the error that ended the run.
        with suppress(OSError):
            record.save(directory)
        raise
    finally:
        if follower is not None:
            follower.wait()


def follow(directory: Path) -> bool:
    """Upload the runs in `directory` until the outer one has ended; False if MLflow lacks some of them.

    Ends early if the parent process dies during the training, which may be resumed.
    """
    os.nice(_NICENESS)
    parent = int(os.environ.get(_TRAINING, os.getppid()))
    # A failure here is repeated, and reported, by the upload.
    with suppress(Exception):
        from mlp_dist.tracking import draw, store

        store.import_ahead()
        draw.warm_up()
    # Before the first run, and before one that MLflow has is resumed.
    while not has_record(directory) or is_uploaded(directory):
        if os.getppid() != parent:
            return True
        time.sleep(_POLL)
    following = _Following(directory)
    while following.is_behind():
        if os.getppid() != parent and math.isinf(following.ended):
            return True
        following.upload()
        time.sleep(_POLL)
    return not following.problem


class _Following:
    """Uploads the runs in a directory whose files have changed. `ended` is when the outer one did, or inf."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.ended, self.problem = directory, math.inf, ""
        self._seen: dict[Path, list[int]] = {}
        self._monitored: set[str] = set()
        self._progressed = time.time()
        self._not_before, self._wait = time.monotonic() + _CALM, 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def is_behind(self) -> bool:
        """True until the outer run has ended and all runs are uploaded, or it is hopeless."""
        if not self.problem:
            self._progressed = time.time()
        ended_ms = RunRecord.load(self.directory).ended_ms
        if ended_ms is not None and math.isinf(self.ended):
            self._not_before = 0.0
        self.ended = math.inf if ended_ms is None else ended_ms / 1000
        return math.isinf(self.ended) or (bool(self._changed()) and not self._is_hopeless())

    def _is_hopeless(self, active: float = 0.0) -> bool:
        """True if an ended run's upload has made no progress for too long, nor since `active`."""
        last = max(self._progressed, active, self.ended)
        return time.time() - last > (PATIENCE if self.problem else STUCK)

    def _changed(self) -> list[Path]:
        return [each for each in runs_in(self.directory) if self._seen.get(each) != _times(each)]

    def upload(self) -> None:
        """Draw what can be drawn, and upload the runs that have changed if it is time."""
        with suppress(Exception):
            from mlp_dist.tracking.draw import draw

            draw(self.directory)
        if time.monotonic() < self._not_before:
            return
        for directory in self._changed():
            before, times = time.process_time(), _times(directory)
            try:
                from mlp_dist.tracking.upload import upload

                self._monitor(upload(directory, self._note_progress))
            except Exception as error:
                what = "" if isinstance(error, MlpDistError) else "the run cannot be uploaded: "
                self._failed(f"{what}{error}")
                continue
            self._seen[directory] = times
            if self.problem:
                progress.tell_beside("MLflow can be reached again")
            self.problem, self._wait = "", 0.0
            if math.isinf(self.ended):
                used = time.process_time() - before
                self._not_before = time.monotonic() + max(_PACE, used / _SHARE)

    def _failed(self, problem: str) -> None:
        if not self.problem:
            progress.tell_beside(f"warning: {problem}; the rest of the run is kept in {self.directory}")
        self.problem = problem
        longer = min(2 * self._wait or _FIRST_WAIT, _LONGEST_WAIT)
        self._wait = longer if math.isinf(self.ended) else _FIRST_WAIT
        self._not_before = time.monotonic() + self._wait

    def _note_progress(self, part: str) -> None:
        self._progressed = time.time()

    def _watch(self) -> None:
        """End the process if the upload waits for an answer that never comes."""
        used, active = time.process_time(), time.time()
        while not self._is_hopeless(active):
            time.sleep(1)
            # On a busy machine an upload may take its time.
            if time.process_time() - used > _IDLE:
                used, active = time.process_time(), time.time()
        if not self.problem:
            progress.tell_beside("warning: MLflow does not answer")
        os._exit(1)

    def _monitor(self, run_id: str) -> None:
        """Start MLflow's system metrics for the run, if the user asked for them."""
        is_wanted = os.environ.get(_SYSTEM_METRICS, "").lower() in ("true", "1")
        if is_wanted and run_id not in self._monitored:
            self._monitored.add(run_id)
            monitors: Any = import_module("mlflow.system_metrics.system_metrics_monitor")
            monitors.SystemMetricsMonitor(run_id, resume_logging=True).start()


def _times(directory: Path) -> list[int]:
    """When the files that an upload depends on were written."""
    paths = [directory / name for name in (RECORD, METRICS, SAMPLES, PREDICTIONS)]
    return [path.stat().st_mtime_ns for path in paths if path.exists()]
