"""Uploads to a store that does not answer, each in its own process: retries would outlast the test."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.launching import environment

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys, time
from pathlib import Path
from mlp_dist.tracking.delivery import Delivery
from mlp_dist.tracking.run_dir import RunRecord
from mlp_dist.tracking.store import import_ahead

import_ahead()
number, patience = int(sys.argv[1]), float(sys.argv[2])
delivery, found = Delivery(), []
for key in map(str, range(number)):
    directory = Path(key)
    directory.mkdir()
    RunRecord(experiment="e", name="n", key=key).save(directory)
    started = time.monotonic()
    delivery.changed(directory)
    outcome = delivery.settle(directory, patience).result(60)
    found.append([outcome.run_id, outcome.problem, time.monotonic() - started])
print(json.dumps(found), flush=True)
os._exit(0)
"""


def settle(cwd: Path, uri: str, number: int, patience: float) -> tuple[list[list[Any]], str]:
    words = [sys.executable, "-c", SCRIPT, str(number), str(patience)]
    done = subprocess.run(
        words, cwd=cwd, env=environment(MLFLOW_TRACKING_URI=uri), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_no_run_waits_for_those_before_it(tmp_path: Path) -> None:
    found, stderr = settle(tmp_path, "http://me:secret@127.0.0.1:9", 6, 1.0)
    problem = "MLflow at http://me:***@127.0.0.1:9 cannot take the run: Connection refused"
    assert [(run_id, text.split(";")[0]) for run_id, text, _ in found] == [("", problem)] * 6
    # Far less than the sum of the waits between attempts.
    assert max(seconds for *_, seconds in found[1:]) < 5
    assert stderr.count("warning") == 1
    assert "secret" not in stderr


def test_hanging_database_fails_after_a_while(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        [[run_id, problem, _]], _ = settle(tmp_path, f"postgresql://me@127.0.0.1:{port}/x", 1, 0.5)
    assert (run_id, problem) == ("", "MLflow does not answer")
