"""A training's run in MLflow. A process of its own imports, stores and draws, beside the training.

Nothing here waits for what is logged; it is stored in the order it was logged in.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from mlp_dist.core.errors import TrackingError
from mlp_dist.processes import STOP_SIGNALS

_DYING_SECONDS = 1.0
_numbers = count()


class Recorder:
    """The process, and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        words = [sys.executable, "-u", "-P", "-m", "mlp_dist.recording", str(theirs.fileno())]
        # It finds the modules that this process finds.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        # What stops the training is sent to all its processes; this one stays until it has stored the rest.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
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

    def ask(self, number: int, what: str, *arguments: Any) -> "Future[Any]":
        """What comes of asking the run `number` for `what`, a method of tracking.OpenRun."""
        # Now, since the training goes on and changes what it has logged.
        return self._thread.submit(self._ask, pickle.dumps((number, what, arguments)))

    def _ask(self, request: bytes) -> Any:
        try:
            self._connection.send_bytes(request)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise TrackingError(
                f"the process that records the run in MLflow (pid {self._process.pid}) {self._ending()}; "
                "the training's last checkpoint is kept, and --resume goes on from there"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

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
_starting = threading.Lock()


def start() -> Recorder:
    """This process's recorder, which is started where there is none."""
    global _recorder
    with _starting:
        if _recorder is None or not _recorder.is_alive:
            _recorder = Recorder()
        return _recorder


class RunTracker:
    """A run that is open in MLflow; it `is_described` where it had params when it was opened.

    What fails to be stored is raised by one of the next calls, by `wait` at the latest: TrackingError.
    """

    def __init__(self, experiment: str, run_name: str | None, run_id: str | None) -> None:
        self._recorder, self._number = start(), next(_numbers)
        self._unanswered: deque[Future[Any]] = deque()
        variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        # A notebook may have told mlflow itself where runs are kept.
        if "mlflow" in sys.modules:
            variables["MLFLOW_TRACKING_URI"] = sys.modules["mlflow"].get_tracking_uri()
        where = {"cwd": str(Path.cwd()), "words": sys.argv, "variables": variables}
        opened = self._recorder.ask(self._number, "open", where, experiment, run_name, run_id)
        self.run_id: str
        self.is_described: bool
        self.run_id, self.is_described = opened.result()

    def log_config(self, config: dict[str, Any], **facts: str | int) -> None:
        """`config` as a JSON artifact; both as params."""
        self._log("log_config", config, facts)

    def log_dataset(self, name: str, digest: str) -> None:
        self._log("log_dataset", name, digest)

    def log_epochs(self, history: list[dict[str, Any]]) -> None:
        """Each record's figures at its epoch and time; a record that MLflow has already changes nothing."""
        self._log("log_epochs", history)

    def log_figure(self, name: str, *shown: Any) -> None:
        """Draw the one of figures.FIGURES from arrays."""
        self._log("log_figure", name, *shown)

    def log_checkpoint(self, directory: Path) -> None:
        """The files in `directory`, which must stay until `wait` returns."""
        self._log("log_checkpoint", directory)

    def log_bundle(self, bundle: Path) -> None:
        """The directory must stay until `wait` returns."""
        self._log("log_bundle", bundle)

    def log_summary(self, summary: dict[str, float | None]) -> None:
        """The figures that runs are compared by."""
        self._log("log_summary", summary)

    def _log(self, what: str, *arguments: Any) -> None:
        while self._unanswered and self._unanswered[0].done():
            self._unanswered.popleft().result()
        self._unanswered.append(self._recorder.ask(self._number, what, *arguments))

    def wait(self) -> None:
        """Until all is stored. Raises TrackingError where something cannot be."""
        while self._unanswered:
            self._unanswered.popleft().result()

    def end(self, status: str) -> None:
        self._recorder.ask(self._number, "end", status).result()


@contextmanager
def open_run(experiment: str, run_name: str | None, run_id: str | None = None) -> Iterator[RunTracker]:
    """A new run of `experiment`, or the run `run_id` opened again; it ends as what happens inside says.

    FINISHED; KILLED on KeyboardInterrupt; FAILED on any other exception. Raises TrackingError where
    MLflow cannot open it.
    """
    run, status = RunTracker(experiment, run_name, run_id), "FAILED"
    try:
        yield run
        run.wait()
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # What has ended the training is told before what MLflow says to it.
        with suppress(*[] if status == "FINISHED" else [TrackingError]):
            run.end(status)
