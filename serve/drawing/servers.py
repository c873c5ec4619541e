"""The servers behind the page: TorchServe and MLflow, reused if they run, else started and stopped."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from urllib.parse import urlsplit, urlunsplit

from mlp_dist.core.errors import MlpDistError, ServerError
from mlp_dist.core.spec import EXACT
from mlp_dist.tracking import find
from mlp_dist.tracking.store import load_mlflow
from serve.archive import Archive
from serve.client import Client
from serve.server import describe, launch
from serve.torchserve import process as torchserve
from serve.torchserve.ports import HOST, free_ports
from serve.torchserve.state import find_state

_MLFLOW_SECONDS = 60.0
_STOP_SECONDS = 5.0


@contextmanager
def torchserve_with(archive: Archive) -> Iterator[Client]:
    """A client of the server that runs here, else of a new one with `archive`, stopped at the end.

    Raises ServerError if none starts, or if the running one is unhealthy or serves another run.
    """
    client = _running_client(archive)
    if client is not None:
        print(f"using the TorchServe at {client.url}", flush=True)
        yield client
        return
    state = launch(archive.path)
    try:
        print(f"TorchServe is ready at {state.url}", flush=True)
        yield Client.of(state)
    finally:
        torchserve.stop(state)


def _running_client(archive: Archive) -> Client | None:
    state = find_state()
    if state is not None and state.is_running():
        values = describe(state)
        if not values["ready"]:
            raise ServerError(
                f"the server at {state.url} is unhealthy: {values.get('reason')}; stop it and start again: "
                "python -m serve.server stop"
            )
        _check_run(values["run_id"], archive, state.url)
        return Client.of(state)
    # `torchserve --start` leaves a key file here.
    client = Client(model=archive.name)
    if client.find_key_file() is None:
        return None
    try:
        answer = client.ask(archive.golden, headers={"X-Preprocess": EXACT}, timeout=5)
    except ServerError:
        return None
    _check_run(answer.run_id, archive, client.url)
    return client


def _check_run(run_id: str, archive: Archive, url: str) -> None:
    """The page shows the archive's metadata beside the server's answers."""
    if run_id and run_id != archive.spec.run_id:
        raise ServerError(
            f"the server at {url} serves run {run_id}, but {archive.path} holds run {archive.spec.run_id}: "
            "stop the server (python -m serve.server stop, or torchserve --stop) and start again, or "
            f"python -m serve.server deploy {archive.path}"
        )


class MLflowPages:
    """MLflow's pages at `uri`; `process` is the server if one was started."""

    def __init__(self, uri: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.uri, self._process = uri, process
        self._experiments: dict[str, str] = {}

    def wait(self) -> bool:
        """Wait for the server; returns False if it does not start."""
        deadline = time.monotonic() + _MLFLOW_SECONDS
        while self._process is not None and not _is_healthy(self.uri):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.uri = ""
                return False
            time.sleep(0.1)
        return True

    def run_url(self, run_id: str) -> str:
        """The URL of a run's page, "" if MLflow does not know the run."""
        if run_id not in self._experiments:
            self._experiments[run_id] = ""
            # Failures are cached too: a store that hangs would delay every answer.
            with suppress(MlpDistError):
                self._experiments[run_id] = find.get_run(run_id).experiment_id
        experiment = self._experiments[run_id]
        return f"{self.uri}/#/experiments/{experiment}/runs/{run_id}" if self.uri and experiment else ""


@contextmanager
def mlflow_pages() -> Iterator[MLflowPages]:
    """The pages of the configured tracking server, else of a new `mlflow server`, stopped at the end."""
    store = load_mlflow().get_tracking_uri()
    if store.startswith(("http://", "https://")):
        yield MLflowPages(_without_password(store))
        return
    [port] = free_ports(1)
    settings = {
        # Not on the command line, which is public: it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Job execution would start one process per core.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    words = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Keeps Ctrl-C from it.
        start_new_session=True,
    )
    try:
        yield MLflowPages(f"http://{HOST}:{port}", process)
    finally:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)


def _is_healthy(uri: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, HTTPException), direct.open(f"{uri}/health", timeout=5) as answer:
        return bool(answer.read() == b"OK")
    return False


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
