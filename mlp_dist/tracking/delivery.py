"""Sends runs' directories in a thread, and goes on trying where MLflow cannot be reached."""

import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlp_dist.console import progress
from mlp_dist.core.errors import MlpDistError
from mlp_dist.tracking.run_dir import has_record
from mlp_dist.tracking.sent import sent_id
from mlp_dist.tracking.upload import send

CALM = 3.0
"""Seconds of a run in which nothing is sent or drawn unless it is waited for: it may be a short one, and what
goes on beside the training costs it time."""

PACE, SHARE = 1.0, 0.01
"""Seconds between two sendings, at least, and the share of one core that they may take while nobody waits."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between two attempts; each is twice the one before."""


STUCK = 12
"""So many times the patience of who waits may a part of a run take: a database that hangs never says so."""


@dataclass(frozen=True)
class Outcome:
    """What MLflow has: the run's id, empty where it has none, and why it has not all, empty where it has."""

    run_id: str = ""
    problem: str = ""


class Delivery:
    """One thread for all runs: they go to one MLflow."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._changed: list[Path] = []
        self._awaited: dict[Path, list[Future[Outcome]]] = {}
        self._problems: dict[Path, str] = {}
        self._not_before, self._wait = 0.0, 0.0
        self._is_alive()
        threading.Thread(target=self._work, daemon=True).start()

    def opened(self, directory: Path) -> None:
        with self._condition:
            self._not_before = max(self._not_before, time.monotonic() + CALM)
            self.changed(directory)

    def changed(self, directory: Path) -> None:
        """There is something to send, now or soon."""
        with self._condition:
            if directory not in self._changed:
                self._changed.append(directory)
            self._condition.notify()

    def settle(self, directory: Path, patience: float) -> "Future[Outcome]":
        """What comes of sending now; where MLflow cannot be reached, in `patience` seconds."""
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
            # Its own attempt may stand behind those of runs that have ended before.
            problem = next(iter(self._problems.values()), "")
            if not problem and time.monotonic() - self._alive > STUCK * patience:
                problem = "MLflow does not answer"
            if problem:
                _resolve(settled, Outcome(sent_id(directory), problem))
            time.sleep(0.1)

    def _is_alive(self) -> None:
        self._alive = time.monotonic()

    def _work(self) -> None:
        while True:
            directory, awaited = self._next()
            before = time.thread_time()
            try:
                self._is_alive()
                run_id = send(directory, self._is_alive)
            except MlpDistError as error:
                self._failed(directory, awaited, str(error))
            except Exception as error:
                self._failed(directory, awaited, f"the run cannot be sent: {error!r}")
            else:
                self._succeeded(directory, time.thread_time() - before)
                for settled in awaited:
                    _resolve(settled, Outcome(run_id))

    def _next(self) -> "tuple[Path, list[Future[Outcome]]]":
        """Those that are waited for come first."""
        with self._condition:
            while True:
                # What the last sending has cost, or another run's problem, holds up nobody who waits.
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
            # Whoever removed it wants no more of it.
            self._problems.pop(directory, None)
            for settled in awaited:
                _resolve(settled, Outcome(problem=problem))
            return
        if not self._problems:
            kept = f"the training goes on, and {directory} keeps what MLflow has not got"
            progress.tell_beside(f"warning: {problem}; {kept}")
        with self._condition:
            self._problems[directory] = problem
            self._wait = min(2 * self._wait or FIRST_WAIT, LONGEST_WAIT)
            self._not_before = time.monotonic() + self._wait
            # Who has given up is not waited for: the others come first.
            if waiting := [each for each in awaited if not each.done()]:
                self._awaited[directory] = waiting + self._awaited.get(directory, [])
            self.changed(directory)


def _resolve(settled: "Future[Outcome]", outcome: Outcome) -> None:
    # Both threads may come to it.
    with suppress(InvalidStateError):
        settled.set_result(outcome)
