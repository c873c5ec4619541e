"""MLflow's database where there is none yet."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT, environment

pytestmark = pytest.mark.slow

CODE = """
from mlp_dist.tracking.client import load_mlflow, making_tables
mlflow = load_mlflow()
with making_tables(mlflow.get_tracking_uri()):
    print(len(mlflow.MlflowClient().search_experiments()))
"""


def opening(cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CODE],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_kill_while_the_tables_are_made_leaves_no_half_made_database(tmp_path: Path) -> None:
    with opening(tmp_path) as process:
        # SQLite's journal is there within a transaction: some steps are done, others are not.
        while not (journals := [*tmp_path.glob(".*-journal"), *tmp_path.glob("*-journal")]):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert journals[0].name != "mlflow.db-journal"
    assert not (tmp_path / "mlflow.db").exists()
    with opening(tmp_path) as process:
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "1\n")
