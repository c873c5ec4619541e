"""Trainings with a real `mlflow server` that dies or hangs."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.comparing import check_all_is_there, read_history
from tests.helpers.launching import ROOT, environment, result, run
from tests.helpers.mlflow_servers import Server, running_server

pytestmark = pytest.mark.nightly

EPOCHS = 60


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def server(started: Server) -> Server:
    """Running, whatever the test before did."""
    if started.process is None:
        started.start()
    return started


@pytest.fixture
def client(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server.uri)


@contextmanager
def training(server: Server, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """A training after the upload of its first epochs."""
    words = [sys.executable, str(ROOT / "launch/train.py"), "--dataset", "digits", "--log-every", "70"]
    words += ["--batch-size", "4", "--output-dir", "output", "--epochs", str(EPOCHS)]
    variables = environment(MLFLOW_TRACKING_URI=server.uri)
    with (cwd / "out").open("w") as out, (cwd / "err").open("w") as err:
        process = subprocess.Popen(words, cwd=cwd, env=variables, stdout=out, stderr=err, text=True)
    try:
        wait_until((cwd / "output/metrics.jsonl").exists, process, cwd)
        with slowed(process):
            wait_until(lambda: sent_epochs(cwd / "output") > 0, process, cwd)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def slowed(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Stop the process most of the time, so that the upload keeps up on a busy machine."""
    ended = threading.Event()

    def stop_and_continue() -> None:
        while not ended.wait(0.05):
            process.send_signal(signal.SIGSTOP)
            ended.wait(0.5)
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stop_and_continue)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str]", cwd: Path) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, (cwd / "err").read_text()
        assert time.monotonic() < deadline, (cwd / "err").read_text()
        time.sleep(0.02)


def sent_epochs(output: Path) -> int:
    try:
        return int(json.loads((output / "sent.json").read_text())["epochs"])
    except FileNotFoundError:
        return 0


def finish(process: "subprocess.Popen[str]", cwd: Path, since: float) -> str:
    """Returns the run's id, after checking that the training warned once and never waited for the server."""
    stderr = cwd / "err"
    assert process.wait(240) == 0, stderr.read_text()
    times = [line["timestamp_ms"] / 1000 for line in read_history(cwd / "output")]
    # An attempt, or a wait between two, takes seconds.
    times = [since, *(each for each in times if each > since)]
    assert max(after - before for before, after in pairwise(times)) < 3
    assert stderr.read_text().count("warning") == 1
    return str(json.loads((cwd / "out").read_text().splitlines()[-1])["run_id"])


def sync(server: Server, cwd: Path) -> str:
    words = [sys.executable, str(ROOT / "launch/sync.py"), "output"]
    [run_id] = result(run(words, cwd, MLFLOW_TRACKING_URI=server.uri))["run_ids"]
    return str(run_id)


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_a_training_goes_on_without_its_server(
    outage: str, server: Server, client: Any, tmp_path: Path
) -> None:
    with training(server, tmp_path) as process:
        since = time.time()
        (server.kill if outage == "killed" else server.freeze)()
        try:
            run_id = finish(process, tmp_path, since)
        finally:
            server.thaw()
    if outage == "killed":
        assert sent_epochs(tmp_path / "output") < EPOCHS
        server.start()
    else:
        assert "it does not answer" in (tmp_path / "err").read_text()
    assert sync(server, tmp_path) == run_id
    check_all_is_there(client, run_id, tmp_path / "output")
