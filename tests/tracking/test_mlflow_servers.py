"""The servers that the tests of outages rely on really go, hang and come back."""

import sys
from pathlib import Path

import pytest

from tests.helpers.launching import run
from tests.helpers.mlflow_servers import _members, running_server

pytestmark = pytest.mark.slow

_MAKE = "import mlflow; mlflow.create_experiment('kept')"
_ASK = "import mlflow; print([each.name for each in mlflow.search_experiments()])"


def test_a_server_goes_hangs_and_comes_back_with_what_it_had(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        assert server.process is not None
        first = server.process.pid
        assert len(_members(first)) == 2
        server.freeze()
        assert not server.answers(0.3)
        server.thaw()
        assert server.answers()
        assert run([sys.executable, "-c", _MAKE], tmp_path, MLFLOW_TRACKING_URI=server.uri).returncode == 0
        server.kill()
        assert not server.answers()
        assert not _members(first)
        server.start()
        assert "kept" in run([sys.executable, "-c", _ASK], tmp_path, MLFLOW_TRACKING_URI=server.uri).stdout
        server.freeze()
        second = server.process.pid
    assert not _members(second)
    assert not server.answers()
