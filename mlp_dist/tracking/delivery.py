"""Sends runs' directories in a thread, and goes on trying where MLflow cannot be reached."""

import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlp_dist.core.errors import MlpDistError
from mlp_dist.tracking.send import send

PACE = 1.0
"""Seconds between two sendings while the training goes on: to send often would cost it a core."""

LONGEST_WAIT = 30.0
"""Seconds between two attempts, at most."""


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
        self._run_ids: dict[Path, str] = {}
        self._not_before, self._wait, self._problem = 0.0, 0.0, ""
        threading.Thread(target=self._work, daemon=True).start()

    def changed(self, directory: Path) -> None:
        """There is something to send, now or soon."""
        with self._condition:
            if directory not in self._changed:
                self._changed.append(directory)
            self._condition.notify()

    def settle(self, directory: Path, patience: float) -> "Future[Outcome]":
        """What comes of sending now, in at most `patience` seconds where MLflow cannot be reached."""
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
            if self._problem:
                self._resolve(settled, Outcome(self._run_ids.get(directory, ""), self._problem))
            time.sleep(0.1)

    @staticmethod
    def _resolve(settled: "Future[Outcome]", outcome: Outcome) -> None:
        # Both threads may come to it.
        with suppress(Exception):
            settled.set_result(outcome)

    def _work(self) -> None:
        while True:
            directory, awaited = self._next()
            try:
                run_id = self._run_ids[directory] = send(directory)
            except MlpDistError as error:
                self._failed(directory, awaited, str(error))
            except Exception as error:
                self._failed(directory, awaited, f"the run cannot be sent: {error!r}")
            else:
                self._succeeded()
                for settled in awaited:
                    self._resolve(settled, Outcome(run_id))

    def _next(self) -> "tuple[Path, list[Future[Outcome]]]":
        """Those that are waited for come first."""
        with self._condition:
            while True:
                left = self._not_before - time.monotonic()
                if self._changed and left <= 0:
                    directory = next(iter(self._awaited), self._changed[0])
                    self._changed.remove(directory)
                    return directory, self._awaited.pop(directory, [])
                self._condition.wait(max(left, 0.0) if self._changed else None)

    def _succeeded(self) -> None:
        if self._problem:
            print("MLflow can be reached again", file=sys.stderr, flush=True)
        self._problem, self._wait = "", 0.0
        self._not_before = time.monotonic() + PACE

    def _failed(self, directory: Path, awaited: "list[Future[Outcome]]", problem: str) -> None:
        if not self._problem:
            print(
                f"warning: {problem}; the training goes on, and {directory} keeps what MLflow has not got",
                file=sys.stderr,
                flush=True,
            )
        self._problem = problem
        self._wait = min(2 * self._wait or 1.0, LONGEST_WAIT)
        with self._condition:
            self._not_before = time.monotonic() + self._wait
            if awaited:
                self._awaited[directory] = awaited + self._awaited.get(directory, [])
        self.changed(directory)
