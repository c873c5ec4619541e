"""An upload to a database that accepts connections and never answers; test_recorder has other failures."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launching import environment

# A process of its own: the upload's thread would outlast the test.
SCRIPT = """
import json, os
from pathlib import Path
from mlp_dist.tracking.delivery import Delivery
from mlp_dist.tracking.run_dir import RunRecord
from mlp_dist.tracking.store import import_ahead

import_ahead()
delivery, directory = Delivery(), Path.cwd()
RunRecord(experiment="e", name="n", key="k").save(directory)
delivery.changed(directory)
outcome = delivery.settle(directory, 0.5).result(60)
print(json.dumps([outcome.run_id, outcome.problem]), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_hanging_database_fails_after_a_while(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=tmp_path,
            env=environment(MLFLOW_TRACKING_URI=uri),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["", "MLflow does not answer"]
