"""A training beside a real `mlflow server` that is down, dies, hangs, or comes back."""

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

from mlp_dist.tracking.sent import sent_id
from tests.helpers.comparing import check_all_is_there, lines
from tests.helpers.launching import ROOT, environment, result, run
from tests.helpers.mlflow_servers import Server, running_server

pytestmark = pytest.mark.slow

EPOCHS = 100


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def server(started: Server) -> Server:
    """It runs, whatever a test before has left."""
    if started.process is None:
        started.start()
    return started


@pytest.fixture
def client(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server.uri)


def command(server: Server, *flags: str) -> tuple[list[str], dict[str, str]]:
    words = [sys.executable, str(ROOT / "launch/train.py"), "--dataset", "digits", "--log-every", "70"]
    return [*words, "--batch-size", "4", "--output-dir", "output", *flags], environment(
        MLFLOW_TRACKING_URI=server.uri
    )


@contextmanager
def training(server: Server, cwd: Path, epochs: int = EPOCHS) -> Iterator["subprocess.Popen[str]"]:
    """One of which the server has a part."""
    words, variables = command(server, "--epochs", str(epochs))
    # Its lines are read at the end: a file takes them all.
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
    """So far that the process which sends what it does keeps up, however busy the machine is."""
    ended = threading.Event()

    def breathe() -> None:
        while not ended.wait(0.05):
            process.send_signal(signal.SIGSTOP)
            ended.wait(0.5)
            process.send_signal(signal.SIGCONT)

    breathing = threading.Thread(target=breathe)
    breathing.start()
    try:
        yield
    finally:
        ended.set()
        breathing.join()


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str]", cwd: Path) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, (cwd / "err").read_text()
        assert time.monotonic() < deadline, (cwd / "err").read_text()
        time.sleep(0.02)


def sent_epochs(output: Path) -> int:
    try:
        return int(json.loads((output / "sent.json").read_text())["epochs"])
    except FileNotFoundError:
        return 0


def finished(process: "subprocess.Popen[str]", cwd: Path) -> tuple[dict[str, Any], str]:
    """What it printed last, and all that it said beside."""
    assert process.wait(120) == 0, (cwd / "err").read_text()
    values = json.loads((cwd / "out").read_text().splitlines()[-1])
    return values, (cwd / "err").read_text()


def longest_epoch(cwd: Path, since: float) -> float:
    """Seconds."""
    times = [record["timestamp_ms"] / 1000 for record in lines(cwd / "output", "metrics.jsonl")]
    return max(
        after - before for before, after in pairwise([since, *(each for each in times if each > since)])
    )


def sync(server: Server, cwd: Path) -> str:
    words = [sys.executable, str(ROOT / "launch/sync.py"), "output"]
    [run_id] = result(run(words, cwd, MLFLOW_TRACKING_URI=server.uri))["run_ids"]
    return str(run_id)


def test_a_server_that_is_down_gets_the_run_later(server: Server, client: Any, tmp_path: Path) -> None:
    server.stop()
    words, variables = command(server, "--epochs", "5")
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert result(done)["run_id"] is None
    assert done.stderr.count("warning") == 1
    assert f"MLflow at {server.uri} cannot take the run: Connection refused" in done.stderr
    assert f"upload the rest with: python -m mlp_dist.sync {tmp_path / 'output'}" in done.stderr
    server.start()
    run_id = sync(server, tmp_path)
    check_all_is_there(client, run_id, tmp_path / "output")
    (tmp_path / "output/sent.json").unlink()
    assert sync(server, tmp_path) == run_id
    check_all_is_there(client, run_id, tmp_path / "output")


def test_a_server_that_dies_gets_the_rest_later(server: Server, client: Any, tmp_path: Path) -> None:
    with training(server, tmp_path) as process:
        since = time.time()
        server.kill()
        values, said = finished(process, tmp_path)
    # An attempt, or a wait between two, takes seconds.
    assert longest_epoch(tmp_path, since) < 3
    assert said.count("warning") == 1
    assert sent_epochs(tmp_path / "output") < EPOCHS
    server.start()
    assert sync(server, tmp_path) == values["run_id"]
    check_all_is_there(client, values["run_id"], tmp_path / "output")


def test_a_server_that_hangs_gets_the_rest_later(server: Server, client: Any, tmp_path: Path) -> None:
    with training(server, tmp_path) as process:
        since = time.time()
        server.freeze()
        try:
            values, said = finished(process, tmp_path)
        finally:
            server.thaw()
    # The server is given ten.
    assert longest_epoch(tmp_path, since) < 3
    assert said.count("warning") == 1
    assert "it does not answer" in said
    assert sync(server, tmp_path) == values["run_id"]
    check_all_is_there(client, values["run_id"], tmp_path / "output")


def test_a_server_that_comes_back_has_all_at_the_end(server: Server, client: Any, tmp_path: Path) -> None:
    def has_said(text: str) -> bool:
        return text in (tmp_path / "err").read_text()

    # However slow the server starts, it is there before the training ends.
    with training(server, tmp_path, epochs=100_000) as process:
        server.kill()
        wait_until(lambda: has_said("warning"), process, tmp_path)
        server.start()
        wait_until(lambda: has_said("MLflow can be reached again"), process, tmp_path)
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM
    assert (tmp_path / "err").read_text().count("warning") == 1
    assert not has_said("launch/sync.py")
    check_all_is_there(client, sent_id(tmp_path / "output"), tmp_path / "output", "KILLED")
