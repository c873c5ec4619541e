import time
from pathlib import Path

import pytest

from mlp_dist.tracking.delivery import Delivery
from mlp_dist.tracking.record import RunRecord

pytestmark = pytest.mark.slow

PATIENCE = 0.5


def test_no_run_waits_for_those_before_it_where_mlflow_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    delivery, seconds = Delivery(), []
    for number in range(6):
        directory = tmp_path / str(number)
        directory.mkdir()
        RunRecord(experiment="e", name="n", key=str(number)).save(directory)
        started = time.monotonic()
        delivery.changed(directory)
        outcome = delivery.settle(directory, PATIENCE).result(60)
        seconds.append(time.monotonic() - started)
        assert "Connection refused" in outcome.problem
    # The first one imports mlflow too.
    assert max(seconds[1:]) < PATIENCE + 1
