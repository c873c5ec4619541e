"""A run, as the training writes it into its directory. A process of its own draws, and brings it to MLflow.

The training waits for that process at its end alone, and never depends on it: what MLflow has not got stays
in the directory.
"""

import atexit
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from mlp_dist.console import progress
from mlp_dist.console.processes import STOP_SIGNALS
from mlp_dist.core.errors import TrackingError
from mlp_dist.tracking.delivery import Outcome
from mlp_dist.tracking.run_dir import FAILED, FINISHED, KILLED, RunRecord

_DYING_SECONDS = 1.0

PATIENCE, IMPATIENCE, LEAST_PATIENCE = 5.0, 2.0, 0.25
"""Seconds that a run waits for an MLflow that cannot be reached, and one that must stop. Where that was in
vain, it and those nested in the same run wait half as long the next time, down to the last.
"""


class Recorder:
    """The process, and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self.patience = PATIENCE
        words = [sys.executable, "-u", "-P", "-m", "mlp_dist.tracking.recording", str(theirs.fileno())]
        # It finds the modules that this process finds.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        # What stops the training is sent to all its processes; this one stays until it has stored the rest.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                # stdout is the result's.
                stdout=2,
                # Jupyter exports an MPLBACKEND that this Python may lack.
                env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"},
                pass_fds=[theirs.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
        # A signal that interrupts this process must not leave half a request behind.
        self._thread = ThreadPoolExecutor(1, "recorder")
        atexit.register(self.close)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, what: str, *arguments: Any) -> "Future[Any]":
        """What comes of `what`, a method of recording.Recording; TrackingError where the process is gone."""
        # Now, since the training goes on and changes what it has told.
        return self._thread.submit(self._ask, pickle.dumps((what, *arguments)))

    def _ask(self, request: bytes) -> Any:
        try:
            self._connection.send_bytes(request)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise TrackingError(
                f"the process that brings the run to MLflow (pid {self._process.pid}) {self._ending()}"
            ) from error

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_DYING_SECONDS)
            return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return "does not answer"

    def close(self) -> None:
        """End the process; runs that are still open stay so."""
        self._process.kill()
        self._process.wait()


_recorder: Recorder | None = None
_open_runs: "dict[Path, RunTracker]" = {}
_starting = threading.Lock()


def start() -> Recorder:
    """This process's recorder, which is started where there is none."""
    global _recorder
    with _starting:
        if _recorder is None or not _recorder.is_alive:
            _recorder = Recorder()
        return _recorder


class RunTracker:
    """A run whose directory goes to MLflow. `record` may be changed; `changed` tells of it.

    Nothing here raises an error because of MLflow, or waits for it, but `run_id` and `end` for a few seconds.
    """

    def __init__(self, directory: Path, record: RunRecord) -> None:
        self.directory, self.record = directory.absolute(), record
        self._run_id, self._lives, self._has_rest = "", 3, False
        self._saved: dict[str, Any] = {}
        self._save()
        self._open()
        if record.parent is None:
            self._recorder.patience = PATIENCE
        _open_runs[self.directory] = self

    def _open(self) -> None:
        self._recorder, self._lives = start(), self._lives - 1
        variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        # A notebook may have told mlflow itself where runs are kept.
        if "mlflow" in sys.modules:
            variables["MLFLOW_TRACKING_URI"] = sys.modules["mlflow"].get_tracking_uri()
        self._tell("open", str(Path.cwd()), sys.argv, variables)

    def _save(self) -> None:
        if (now := asdict(self.record)) != self._saved:
            self.record.save(self.directory)
            self._saved = deepcopy(now)

    def changed(self) -> None:
        """The record, what it names, or the epochs."""
        self._save()
        self._tell("changed")

    def draw(self, name: str, *shown: Any) -> None:
        """Have the one of figures.FIGURES drawn from arrays; the next `changed` adds it to the run."""
        self.record.add(f"figures/{name}.png")
        self._tell("draw", name, shown)

    def _tell(self, what: str, *arguments: Any) -> "Future[Any]":
        # It may have been killed. What it had not sent yet, another one does.
        if not self._recorder.is_alive and self._lives > 0:
            self._open()
        return self._recorder.ask(what, self.directory, *arguments)

    def run_id(self) -> str | None:
        """MLflow's id of the run; None where it could not be reached yet."""
        if not self._run_id:
            self._run_id = self._asked("settle").run_id
        return self._run_id or None

    def end(self, status: str) -> None:
        """Tells on stderr where MLflow has not got all, of it or of those nested in it."""
        self.record.end(status)
        if status == FINISHED:
            self._save()
        else:
            # What has ended the run is told, and not that the disk is full.
            with suppress(OSError):
                self._save()
        with progress.stages("MLflow gets the run"):
            outcome = self._asked("end", PATIENCE if status == FINISHED else IMPATIENCE)
        _open_runs.pop(self.directory, None)
        if outcome.problem or self._has_rest:
            self._tell_rest()

    def _tell_rest(self) -> None:
        if self.record.parent is not None and (around := _open_runs.get(Path(self.record.parent))):
            # One command sends all.
            around._has_rest = True
            return
        rest = f"{'python -m mlp_dist.sync'} {shlex.quote(str(self.directory))}"
        print(f"MLflow has not got all of the run; send the rest by {rest}", file=sys.stderr, flush=True)

    def _asked(self, what: str, patience: float = PATIENCE) -> Outcome:
        while True:
            try:
                patience = min(patience, self._recorder.patience)
                outcome: Outcome = self._tell(what, patience).result()
            except TrackingError as error:
                if self._lives:
                    continue
                outcome = Outcome(problem=str(error))
                print(f"warning: {error}", file=sys.stderr, flush=True)
            self._recorder.patience = max(patience / 2, LEAST_PATIENCE) if outcome.problem else PATIENCE
            return outcome


@contextmanager
def open_run(directory: Path, record: RunRecord) -> Iterator[RunTracker]:
    """The run that `record` describes, in `directory`; it ends as what happens inside says.

    FINISHED; KILLED on KeyboardInterrupt; FAILED on any other exception.
    """
    run, status = RunTracker(directory, record), FAILED
    try:
        yield run
        status = FINISHED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        run.end(status)
