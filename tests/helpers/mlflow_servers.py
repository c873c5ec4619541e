"""Real `mlflow server` processes that can die, hang and come back at the same address."""

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
    """`mlflow WORDS` in `directory`, in its own process group; its output is in `log`."""

    def __init__(self, directory: Path, words: list[str], port: int | None = None, **variables: str) -> None:
        self.directory, self.port = directory, port or free_port()
        self.uri, self.log = f"http://127.0.0.1:{self.port}", directory / f"mlflow-{self.port}.log"
        self._words = [*words, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        # The job runner would add 8 processes and a second.
        self._variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **variables}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server answers."""
        assert self.process is None, "the server is running"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *self._words],
                cwd=self.directory,
                env=environment(**self._variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            assert self.process.poll() is None, f"mlflow has exited: {self.log.read_text()}"
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
        """SIGTERM, then SIGKILL."""
        self._signal(signal.SIGTERM)
        self.thaw()
        if not self._has_ended(_STOP_SECONDS):
            self.kill()
        self.process = None

    def kill(self) -> None:
        """SIGKILL to the whole group, as in a power failure."""
        self._signal(signal.SIGKILL)
        assert self._has_ended(_START_SECONDS), "mlflow cannot be killed"
        self.process = None

    def freeze(self) -> None:
        """Accept connections and never answer."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, signum: int) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)

    def _has_ended(self, seconds: float) -> bool:
        """True once the whole group has ended: a killed server leaves its children behind."""
        deadline = time.monotonic() + seconds
        while self.process is not None and (self.process.poll() is None or _members(self.process.pid)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def free_port() -> int:
    """A port below the ephemeral range, so that a restarted server finds it free."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _members(group: int) -> list[int]:
    """Process ids in a group, without zombies."""
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
def running_server(
    directory: Path,
    *,
    store: str | None = None,
    port: int | None = None,
    flags: tuple[str, ...] = (),
    **variables: str,
) -> Iterator[Server]:
    """`mlflow server` on the database `store`, serving artifacts from `directory`."""
    store = store or f"sqlite:///{directory / 'server.db'}"
    words = ["server", "--backend-store-uri", store, "--artifacts-destination", str(directory / "artifacts")]
    with _running(Server(directory, [*words, *flags], port, **variables)) as server:
        yield server


@contextmanager
def running_ui(directory: Path) -> Iterator[Server]:
    """`mlflow ui` in `directory`."""
    with _running(Server(directory, ["ui"])) as server:
        yield server
