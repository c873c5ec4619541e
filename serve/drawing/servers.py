"""The servers behind the page: used where they run, else started, and those ended again."""

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
from serve import torchserve
from serve.archive import Archive
from serve.client import Client
from serve.ports import HOST, free_ports
from serve.server import launch
from serve.state import find_state
from serve.status import describe

_MLFLOW_SECONDS = 60.0
_STOP_SECONDS = 5.0


@contextmanager
def torchserve_with(archive: Archive) -> Iterator[Client]:
    """A client of the server that runs here, whoever started it; else of one with `archive`, until the end.

    Raises ServerError where none comes up, or the one that runs here does not answer rightly.
    """
    client = _running(archive)
    if client is not None:
        print(f"TorchServe runs already, at {client.url}", flush=True)
        yield client
        return
    state = launch(archive.path)
    try:
        print(f"TorchServe answers at {state.url}", flush=True)
        yield torchserve.client_of(state)
    finally:
        torchserve.stop(state)


def _running(archive: Archive) -> Client | None:
    state = find_state()
    if state is not None and state.runs():
        values = describe(state)
        if not values["ready"]:
            raise ServerError(
                f"the server at {state.url} does not answer rightly: {values.get('reason')}; "
                "end it, and another is started: python -m serve.server stop"
            )
        _check_run(values["run_id"], archive, state.url)
        return torchserve.client_of(state)
    # One that `torchserve --start` started left its keys here.
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
    """The page shows what the archive says of itself, and the server's answers."""
    if run_id and run_id != archive.spec.run_id:
        raise ServerError(
            f"the server at {url} answers with run {run_id}, and {archive.path} is of run "
            f"{archive.spec.run_id}: end it, and one with that is started: python -m serve.server stop, or "
            f"torchserve --stop; or python -m serve.server deploy {archive.path}"
        )


class MLflowPages:
    """MLflow's pages at `uri`, "" where there are none; `process` was started for them, if one was."""

    def __init__(self, uri: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.uri, self._process = uri, process
        self._experiments: dict[str, str] = {}

    def wait(self) -> bool:
        """Until they answer; False where they do not come."""
        deadline = time.monotonic() + _MLFLOW_SECONDS
        while self._process is not None and not _answers(self.uri):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.uri = ""
                return False
            time.sleep(0.1)
        return True

    def run_page(self, run_id: str) -> str:
        """The address of a run's page, "" where there is none."""
        if run_id not in self._experiments:
            self._experiments[run_id] = ""
            # What MLflow does not know now it is not asked again: where it hangs, each answer would wait.
            with suppress(MlpDistError):
                self._experiments[run_id] = find.get_run(run_id).experiment_id
        experiment = self._experiments[run_id]
        return f"{self.uri}/#/experiments/{experiment}/runs/{run_id}" if self.uri and experiment else ""


@contextmanager
def mlflow_pages() -> Iterator[MLflowPages]:
    """Those of the tracking server, where one is set; else `mlflow server` on the store, until the end."""
    store = load_mlflow().get_tracking_uri()
    if store.startswith(("http://", "https://")):
        yield MLflowPages(_without_password(store))
        return
    [port] = free_ports(1)
    settings = {
        # Not on the command line, which all may read: it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # What runs jobs would be as many processes as there are cores.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    words = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C is for the page, which ends this.
        start_new_session=True,
    )
    try:
        yield MLflowPages(f"http://{HOST}:{port}", process)
    finally:
        _end(process)


def _answers(uri: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, HTTPException), direct.open(f"{uri}/health", timeout=5) as answer:
        return bool(answer.read() == b"OK")
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
