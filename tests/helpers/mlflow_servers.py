"""Real `mlflow server`s on this machine, which can die, hang and come back where they were."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import psutil

from tests.helpers.launching import environment

_START_SECONDS = 90.0
_STOP_SECONDS = 10.0


class Server:
    """`mlflow WORDS` in `directory`, as a process group of its own, at `uri`; its output is in `log`."""

    def __init__(self, directory: Path, words: list[str], port: int | None = None) -> None:
        self.directory, self.port = directory, port or free_port()
        self.uri, self.log = f"http://127.0.0.1:{self.port}", directory / f"mlflow-{self.port}.log"
        self._words = [*words, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers; where it was before, if it was."""
        assert self.process is None, "the server runs"
        # Without what runs its jobs, it is there in 5 s with 2 processes, and not in 6 s with 10.
        variables = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *self._words],
                cwd=self.directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            assert self.process.poll() is None, f"mlflow has ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"mlflow does not answer: {self.log.read_text()}"
            time.sleep(0.05)

    def answers(self, seconds: float = 5.0) -> bool:
        with (
            suppress(OSError, HTTPException),
            urllib.request.urlopen(f"{self.uri}/health", timeout=seconds) as answer,
        ):
            return bool(answer.read() == b"OK")
        return False

    def stop(self) -> None:
        """As someone who asks it to, and by force where it does not listen."""
        self._signal(signal.SIGTERM)
        self.thaw()
        if not self._has_ended(_STOP_SECONDS):
            self.kill()
        self.process = None

    def kill(self) -> None:
        """As a machine that loses its power."""
        self._signal(signal.SIGKILL)
        assert self._has_ended(_STOP_SECONDS), "mlflow cannot be killed"
        self.process = None

    def freeze(self) -> None:
        """It takes connections and never answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, signum: int) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)

    def _has_ended(self, seconds: float) -> bool:
        """All of it: it leaves the group's other processes behind when it is killed."""
        deadline = time.monotonic() + seconds
        while self.process is not None and (self.process.poll() is None or _members(self.process.pid)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def free_port() -> int:
    """One that no connection is given of itself, so that a server that went finds it free when it is back."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _members(group: int) -> list[int]:
    """The ids of the processes in a group that have not ended."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def running_server(directory: Path, *, store: str | None = None, port: int | None = None) -> Iterator[Server]:
    """`mlflow server` on the database `store`, which gives out the artifacts it keeps in `directory`."""
    store = store or f"sqlite:///{directory / 'server.db'}"
    words = ["server", "--backend-store-uri", store, "--artifacts-destination", str(directory / "artifacts")]
    with _running(Server(directory, words, port)) as server:
        yield server


@contextmanager
def running_ui(directory: Path) -> Iterator[Server]:
    """`mlflow ui` as typed in `directory`, on the store there."""
    with _running(Server(directory, ["ui"])) as server:
        yield server
