"""Trainings with a real `mlflow server` that dies or hangs."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.core.errors import TrackingError
from mlp_dist.tracking.follow import PATIENCE
from mlp_dist.tracking.run_dir import FINISHED, RunRecord, Uploaded
from mlp_dist.tracking.upload import upload
from tests.helpers.comparing import check_all_is_there, check_points, read_history, write_epochs
from tests.helpers.launching import QUICK, ROOT, environment, result, run, wait_until
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
def training(server: Server, client: Any, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """A training after the upload of its first epochs."""
    words = [sys.executable, str(ROOT / "launch/train.py"), *QUICK, "--log-every", "70"]
    words += ["--batch-size", "4", "--output-dir", "output", "--epochs", str(EPOCHS)]
    variables = environment(MLFLOW_TRACKING_URI=server.uri)
    with (cwd / "out").open("w") as out, (cwd / "err").open("w") as err:
        process = subprocess.Popen(words, cwd=cwd, env=variables, stdout=out, stderr=err, text=True)
    try:
        wait_until((cwd / "output/metrics.jsonl").exists)
        with slowed(process):
            wait_until(lambda: sent_epochs(client, cwd / "output") > 0)
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


def sent_epochs(client: Any, output: Path) -> int:
    run_id = Uploaded.load(output).run_id
    return len(client.get_metric_history(run_id, "train/loss")) if run_id else 0


def finish(process: "subprocess.Popen[str]", cwd: Path, since: float) -> str:
    """Returns the run's id, after checking that the training warned once and waited for the server only
    at its end."""
    stderr = cwd / "err"
    assert process.wait(240) == 0, stderr.read_text()
    ended = time.time()
    times = [line["timestamp_ms"] / 1000 for line in read_history(cwd / "output")]
    # An attempt, or a wait between two, takes seconds.
    times = [since, *(each for each in times if each > since)]
    assert max(after - before for before, after in pairwise(times)) < 3
    # It tests and stores first.
    assert ended - times[-1] < PATIENCE + 8
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
    with training(server, client, tmp_path) as process:
        since = time.time()
        (server.kill if outage == "killed" else server.freeze)()
        try:
            run_id = finish(process, tmp_path, since)
        finally:
            server.thaw()
    if outage == "killed":
        server.start()
    else:
        assert "it does not answer" in (tmp_path / "err").read_text()
    assert sent_epochs(client, tmp_path / "output") < EPOCHS
    assert sync(server, tmp_path) == run_id
    check_all_is_there(client, run_id, tmp_path / "output")


AUTH = """
[mlflow]
default_permission = READ
database_uri = sqlite:///{directory}/users.db
admin_username = admin
admin_password = a-long-password
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def test_a_server_with_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    (tmp_path / "auth.ini").write_text(AUTH.format(directory=tmp_path))
    # MLflow takes Flask-WTF, which it does not install, for a form on which users sign up.
    (tmp_path / "flask_wtf").mkdir()
    (tmp_path / "flask_wtf/csrf.py").write_text("class CSRFProtect:\n    def init_app(self, app): pass\n")
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": f"{tmp_path}/auth.ini",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
        "PYTHONPATH": str(tmp_path),
    }
    record = RunRecord(experiment="x", name="name", key="key")
    record.end(FINISHED)
    record.save(tmp_path)
    write_epochs(tmp_path, range(1, 4))
    (tmp_path / "config.json").write_text("{}")
    with running_server(tmp_path, flags=("--app-name", "basic-auth"), **variables) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        asked = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        with pytest.raises(TrackingError, match=asked):
            upload(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a wrong password")
        with pytest.raises(TrackingError, match=asked):
            upload(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
        check_points(MlflowClient(server.uri), upload(tmp_path), tmp_path)
