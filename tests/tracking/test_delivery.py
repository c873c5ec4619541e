"""In a process of its own each: what cannot be sent would be sent later, into another test's store."""

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
from mlp_dist.tracking.record import RunRecord

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


def test_no_run_waits_for_those_before_it_where_mlflow_cannot_be_reached(tmp_path: Path) -> None:
    found, said = settle(tmp_path, "http://127.0.0.1:9", 6, 0.5)
    assert all("Connection refused" in problem for _, problem, _ in found)
    # The first one imports mlflow too.
    assert max(seconds for *_, seconds in found[1:]) < 3
    assert said.count("warning") == 1


def test_a_database_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    [[run_id, problem, _]], said = settle(tmp_path, "postgresql://me:secret@127.0.0.1:9/x", 1, 2)
    assert run_id == ""
    assert "MLflow at postgresql://me:***@127.0.0.1:9/x cannot take the run: " in problem
    assert "Connection refused" in problem
    assert said.count("warning") == 1
    assert "secret" not in said


BESIDE = """
import os, time
from pathlib import Path
from mlp_dist.tracking import delivery
from mlp_dist.tracking.record import RunRecord

# After a sending nothing is sent for years, unless it is waited for. Importing mlflow may take a minute.
delivery.SHARE = 1e-12
sender, directories = delivery.Delivery(), [Path("a"), Path("b")]
for directory in directories:
    directory.mkdir()
    RunRecord(experiment="e", name="n", key=directory.name).save(directory)
sender.changed(directories[0])
time.sleep(0.3)
print(sender.settle(directories[1], 5).result(60), flush=True)
os._exit(0)
"""


def test_who_waits_is_not_held_up_by_what_is_being_sent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "problem=''" in done.stdout


def test_a_database_that_hangs_holds_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        [[run_id, problem, _]], _ = settle(tmp_path, f"postgresql://me@127.0.0.1:{port}/x", 1, 0.5)
    assert (run_id, problem) == ("", "MLflow does not answer")
