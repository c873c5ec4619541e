"""Creating MLflow's database, from several processes and with a kill in between."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlp_dist.tracking.store import hide_password
from tests.helpers.launching import ROOT, environment

CODE = """
from mlp_dist.tracking.store import opened_store
with opened_store(create=True) as client:
    print(len(client.search_experiments()))
"""


def start_client(cwd: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", CODE]
    variables = environment(PYTHONPATH=str(ROOT))
    return subprocess.Popen(words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_create_one_database(tmp_path: Path) -> None:
    with start_client(tmp_path) as one, start_client(tmp_path) as other:
        assert [each.communicate(timeout=240)[0] for each in (one, other)] == ["1\n"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.nightly
def test_kill_leaves_no_partial_database(tmp_path: Path) -> None:
    with start_client(tmp_path) as process:
        # SQLite's journal exists within a transaction: some migrations are done, others are not.
        while not (journals := [*tmp_path.glob(".*-journal"), *tmp_path.glob("*-journal")]):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert journals[0].name != "mlflow.db-journal"
    assert not (tmp_path / "mlflow.db").exists()
    with start_client(tmp_path) as process:
        assert process.communicate(timeout=240)[0] == "1\n"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://me:secret@there:5/x", "postgresql://me:***@there:5/x"),
        ("postgresql://there/x?user=me&password=secret&a=b", "postgresql://there/x?user=me&password=***&a=b"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_hides_password(uri: str, expected: str) -> None:
    assert hide_password(uri) == expected
