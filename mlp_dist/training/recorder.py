"""The training's side of tracking: it writes the run's record, and a second process uploads it to MLflow.

That process, tracking/recording.py, also draws the figures. The training waits for it only at its end, for a
few seconds: what MLflow does not have yet stays in the run's directory.
"""

import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from mlp_dist.console import progress
from mlp_dist.console.process import STOP_SIGNALS
from mlp_dist.core.errors import TrackingError
from mlp_dist.tracking.delivery import Outcome
from mlp_dist.tracking.run_dir import FAILED, FINISHED, KILLED, RunRecord

_EXIT_SECONDS = 1.0

PATIENCE, IMPATIENCE, LEAST_PATIENCE = 5.0, 2.0, 0.25
"""Seconds to wait for an unreachable MLflow: for a finished run, for an interrupted one, and at the least.

After each wait in vain, the next wait for the same run, or runs nested beside it, is half as long.
"""


class Recorder:
    """The second process and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self.patience, self.store = PATIENCE, _store()
        words = [sys.executable, "-u", "-P", "-m", "mlp_dist.tracking.recording", str(theirs.fileno())]
        # The process must find the same modules as this one.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        # Signals that stop the training reach all its processes; this one must stay to upload the rest.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                # stdout is for the result.
                stdout=2,
                # Jupyter exports an MPLBACKEND that this Python may lack.
                env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"},
                pass_fds=[theirs.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
        # In a thread, so that a signal cannot interrupt half a request.
        self._thread = ThreadPoolExecutor(1, "recorder")
        # Also at exit. Runs that are open stay open.
        self.close = weakref.finalize(self, _kill, self._process)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def request(self, method: str, *arguments: Any) -> "Future[Any]":
        """Call a public method of recording.Recording; TrackingError if the process has died."""
        # Pickled now, since the training goes on to change the arguments.
        return self._thread.submit(self._request, pickle.dumps((method, *arguments)))

    def _request(self, request: bytes) -> Any:
        try:
            self._connection.send_bytes(request)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise TrackingError(
                f"the process that uploads to MLflow (pid {self._process.pid}) {self._exit_reason()}"
            ) from error

    def _exit_reason(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_EXIT_SECONDS)
            return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return "does not respond"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


_recorder: Recorder | None = None
_starting = threading.Lock()


def _store() -> tuple[Path, dict[str, str]]:
    """The current directory and MLflow's variables, which select its store; a recorder keeps its own."""
    return Path.cwd(), {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}


def start() -> Recorder:
    """This process's recorder for the current store, started if needed."""
    global _recorder
    with _starting:
        if _recorder is None or not _recorder.is_alive or _recorder.store != _store():
            _recorder = Recorder()
        return _recorder


class RunTracker:
    """An open run. After changing `record` or files of the run, call `changed`.

    No method raises an error because of MLflow, and only `run_id` and `end` wait for it, a few seconds.
    """

    def __init__(self, directory: Path, record: RunRecord) -> None:
        self.directory, self.record = directory.absolute(), record
        self._run_id, self._starts_left = "", 3
        self._saved: dict[str, Any] = {}
        self._save()
        self._open()
        if record.parent is None:
            self._recorder.patience = PATIENCE

    def _open(self) -> None:
        self._recorder, self._starts_left = start(), self._starts_left - 1
        self._send("open")

    def _save(self) -> None:
        if (now := asdict(self.record)) != self._saved:
            self.record.save(self.directory)
            self._saved = deepcopy(now)

    def changed(self) -> None:
        """Save the record, and have it and the files that it names uploaded."""
        self._save()
        self._send("changed")

    def _send(self, method: str, *arguments: Any) -> "Future[Any]":
        # If the process was killed, a new one uploads what is missing.
        if not self._recorder.is_alive and self._starts_left > 0:
            self._open()
        return self._recorder.request(method, self.directory, *arguments)

    def run_id(self) -> str | None:
        """MLflow's ID of the run; None if MLflow could not be reached yet."""
        if not self._run_id:
            self._run_id = self._wait_for("settle").run_id
        return self._run_id or None

    def end(self, status: str) -> None:
        """Close the run; says on stderr if MLflow does not have all of it."""
        self.record.end(status)
        if status == FINISHED:
            self._save()
        else:
            # A full disk must not hide the error that ended the run.
            with suppress(OSError):
                self._save()
        with progress.stages("uploading the run to MLflow"):
            outcome = self._wait_for("end", PATIENCE if status == FINISHED else IMPATIENCE)
        if outcome.problem:
            command = f"python -m mlp_dist.sync {shlex.quote(str(self.directory))}"
            print(f"MLflow does not have all of this run; upload the rest with: {command}", file=sys.stderr)

    def _wait_for(self, method: str, patience: float = PATIENCE) -> Outcome:
        while True:
            try:
                patience = min(patience, self._recorder.patience)
                outcome: Outcome = self._send(method, patience).result()
            except TrackingError as error:
                if self._starts_left:
                    continue
                outcome = Outcome(problem=str(error))
                print(f"warning: {error}", file=sys.stderr, flush=True)
            self._recorder.patience = max(patience / 2, LEAST_PATIENCE) if outcome.problem else PATIENCE
            return outcome


@contextmanager
def open_run(directory: Path, record: RunRecord) -> Iterator[RunTracker]:
    """An open run, which ends with the context: FINISHED, KILLED on KeyboardInterrupt, else FAILED."""
    run, status = RunTracker(directory, record), FAILED
    try:
        yield run
        status = FINISHED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        run.end(status)
