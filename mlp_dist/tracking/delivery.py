"""Uploads run directories in a thread, and retries while MLflow cannot be reached."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlp_dist.console import progress
from mlp_dist.core.errors import MlpDistError
from mlp_dist.tracking.run_dir import has_record, sent_id
from mlp_dist.tracking.upload import send

CALM = 3.0
"""Seconds at the start of a run without uploads or pictures, which would slow a short training."""

PACE, SHARE = 1.0, 0.01
"""Least seconds between two uploads, and the share of one core they may use during a training."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between two attempts; each wait is twice the one before."""

STUCK = 12
"""An upload without progress for this many times the caller's patience counts as failed: a database may hang
without an error.
"""


@dataclass(frozen=True)
class Outcome:
    """The run's id in MLflow ("" if it has none) and why the upload is incomplete ("" if it is complete)."""

    run_id: str = ""
    problem: str = ""


class Delivery:
    """One upload thread for all runs; `uploaded` is called with a run's directory and id."""

    def __init__(self, uploaded: Callable[[Path, str], None] = lambda directory, run_id: None) -> None:
        self._uploaded = uploaded
        self._condition = threading.Condition()
        self._changed: list[Path] = []
        self._awaited: dict[Path, list[Future[Outcome]]] = {}
        self._problems: dict[Path, str] = {}
        self._not_before, self._wait = 0.0, 0.0
        self._note_progress()
        threading.Thread(target=self._work, daemon=True).start()

    def opened(self, directory: Path) -> None:
        with self._condition:
            self._not_before = max(self._not_before, time.monotonic() + CALM)
            self.changed(directory)

    def changed(self, directory: Path) -> None:
        """Schedule an upload of the directory."""
        with self._condition:
            if directory not in self._changed:
                self._changed.append(directory)
            self._condition.notify()

    def settle(self, directory: Path, patience: float) -> "Future[Outcome]":
        """Upload the directory now; fails after `patience` seconds if MLflow cannot be reached."""
        settled: Future[Outcome] = Future()
        with self._condition:
            self._awaited.setdefault(directory, []).append(settled)
            self._not_before = 0.0
            self.changed(directory)
        threading.Thread(target=self._give_up, args=(directory, settled, patience), daemon=True).start()
        return settled

    def _give_up(self, directory: Path, settled: "Future[Outcome]", patience: float) -> None:
        time.sleep(patience)
        while not settled.done():
            # This run's own attempt may be queued behind those of other runs.
            problem = next(iter(self._problems.values()), "")
            if not problem and time.monotonic() - self._progressed > STUCK * patience:
                problem = "MLflow does not answer"
            if problem:
                _resolve(settled, Outcome(sent_id(directory), problem))
            time.sleep(0.1)

    def _note_progress(self) -> None:
        self._progressed = time.monotonic()

    def _work(self) -> None:
        while True:
            directory, awaited = self._next()
            before = time.thread_time()
            try:
                self._note_progress()
                run_id = send(directory, self._note_progress)
                self._uploaded(directory, run_id)
            except MlpDistError as error:
                self._failed(directory, awaited, str(error))
            except Exception as error:
                self._failed(directory, awaited, f"the run cannot be uploaded: {error!r}")
            else:
                self._succeeded(directory, time.thread_time() - before)
                for settled in awaited:
                    _resolve(settled, Outcome(run_id))

    def _next(self) -> "tuple[Path, list[Future[Outcome]]]":
        """The next directory to upload; awaited ones come first."""
        with self._condition:
            while True:
                # Awaited runs that have not failed do not wait for the pace, nor for another run's problem.
                fresh = [each for each in self._awaited if each not in self._problems]
                left = 0.0 if fresh else self._not_before - time.monotonic()
                if self._changed and left <= 0:
                    directory = next(iter(fresh or self._awaited), self._changed[0])
                    self._changed.remove(directory)
                    return directory, self._awaited.pop(directory, [])
                self._condition.wait(left if self._changed else None)

    def _succeeded(self, directory: Path, seconds: float) -> None:
        if self._problems.pop(directory, "") and not self._problems:
            progress.tell_beside("MLflow can be reached again")
        self._wait, self._not_before = 0.0, time.monotonic() + max(PACE, seconds / SHARE)

    def _failed(self, directory: Path, awaited: "list[Future[Outcome]]", problem: str) -> None:
        if not has_record(directory):
            # The directory was removed.
            self._problems.pop(directory, None)
            for settled in awaited:
                _resolve(settled, Outcome(problem=problem))
            return
        if not self._problems:
            progress.tell_beside(
                f"warning: {problem}; training continues, and the rest of the run is kept in {directory}"
            )
        with self._condition:
            self._problems[directory] = problem
            self._wait = min(2 * self._wait or FIRST_WAIT, LONGEST_WAIT)
            self._not_before = time.monotonic() + self._wait
            # Callers that gave up must not delay the others.
            if waiting := [each for each in awaited if not each.done()]:
                self._awaited[directory] = waiting + self._awaited.get(directory, [])
            self.changed(directory)


def _resolve(settled: "Future[Outcome]", outcome: Outcome) -> None:
    # Two threads may resolve the same future.
    with suppress(InvalidStateError):
        settled.set_result(outcome)
