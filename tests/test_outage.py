"""A training beside a real `mlflow server` that is down, dies, hangs, or comes back."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from comparing import check_all_is_there, lines
from launching import ROOT, environment, result, run
from mlflow_servers import Server, running_server

pytestmark = pytest.mark.slow

EPOCHS = 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server.uri)


def command(server: Server, *flags: str) -> tuple[list[str], dict[str, str]]:
    words = [sys.executable, str(ROOT / "launch/train.py"), "--dataset", "digits", "--log-every", "7"]
    return [*words, "--output-dir", "output", *flags], environment(MLFLOW_TRACKING_URI=server.uri)


@contextmanager
def training(server: Server, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """A long one, of which the server has a part."""
    words, variables = command(server, "--epochs", str(EPOCHS))
    # Its lines are read at the end: a file takes them all.
    with (cwd / "out").open("w") as out, (cwd / "err").open("w") as err:
        process = subprocess.Popen(words, cwd=cwd, env=variables, stdout=out, stderr=err, text=True)
    try:
        deadline = time.monotonic() + 60
        while not sent_epochs(cwd / "output"):
            assert process.poll() is None, (cwd / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def sent_epochs(output: Path) -> int:
    try:
        return int(json.loads((output / "sent.json").read_text())["epochs"])
    except FileNotFoundError:
        return 0


def finished(process: "subprocess.Popen[str]", cwd: Path) -> tuple[dict[str, Any], str]:
    """What it printed last, and all that it said beside."""
    assert process.wait(120) == 0, (cwd / "err").read_text()
    values = json.loads((cwd / "out").read_text().splitlines()[-1])
    times = [record["timestamp_ms"] for record in lines(cwd / "output", "metrics.jsonl")]
    assert max(after - before for before, after in pairwise(times)) < 3000
    return values, (cwd / "err").read_text()


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
    assert f"send the rest by python launch/sync.py {tmp_path / 'output'}" in done.stderr
    server.start()
    run_id = sync(server, tmp_path)
    check_all_is_there(client, run_id, tmp_path / "output")
    (tmp_path / "output/sent.json").unlink()
    assert sync(server, tmp_path) == run_id
    check_all_is_there(client, run_id, tmp_path / "output")


def test_a_server_that_dies_gets_the_rest_later(server: Server, client: Any, tmp_path: Path) -> None:
    with training(server, tmp_path) as process:
        server.kill()
        values, said = finished(process, tmp_path)
    assert said.count("warning") == 1
    assert sent_epochs(tmp_path / "output") < EPOCHS
    server.start()
    assert sync(server, tmp_path) == values["run_id"]
    check_all_is_there(client, values["run_id"], tmp_path / "output")


def test_a_server_that_hangs_gets_the_rest_later(server: Server, client: Any, tmp_path: Path) -> None:
    with training(server, tmp_path) as process:
        server.freeze()
        try:
            values, said = finished(process, tmp_path)
        finally:
            server.thaw()
    assert said.count("warning") == 1
    assert "it does not answer" in said
    assert sync(server, tmp_path) == values["run_id"]
    check_all_is_there(client, values["run_id"], tmp_path / "output")


def test_a_server_that_comes_back_has_all_at_the_end(server: Server, client: Any, tmp_path: Path) -> None:
    with training(server, tmp_path) as process:
        server.kill()
        while "warning" not in (tmp_path / "err").read_text():
            time.sleep(0.02)
        server.start()
        values, said = finished(process, tmp_path)
    assert said.count("warning") == 1
    assert "MLflow can be reached again" in said
    assert "launch/sync.py" not in said
    check_all_is_there(client, values["run_id"], tmp_path / "output")
