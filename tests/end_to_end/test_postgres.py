"""Four concurrent trainings with a real PostgreSQL, through a server and directly."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.comparing import check_all_is_there
from tests.helpers.launching import QUICK, ROOT, environment, result, run, train
from tests.helpers.mlflow_servers import free_port, running_server
from tests.helpers.postgres import PASSWORD, find_programs, running_postgres

pytestmark = pytest.mark.nightly

NAME = "a name longer than the database column " * 10


@pytest.fixture
def database() -> Iterator[str]:
    programs = find_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    with running_postgres(programs) as uri:
        yield uri


def train_four(cwd: Path, uri: str) -> list[dict[str, Any]]:
    flags = [*QUICK, "--epochs", "3", "--log-every", "5"]
    words = [sys.executable, str(ROOT / "launch/train.py"), *flags]
    together = [
        subprocess.Popen(
            [*words, "--seed", str(seed), "--output-dir", f"seed-{seed}", "--run-name", NAME],
            cwd=cwd,
            env=environment(MLFLOW_TRACKING_URI=uri),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    outputs = [each.communicate(timeout=200) for each in together]
    assert [each.returncode for each in together] == [0] * 4, outputs
    assert [stderr for _, stderr in outputs] == [""] * 4
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


def check(cwd: Path, uri: str) -> list[dict[str, Any]]:
    from mlflow import MlflowClient

    results, client = train_four(cwd, uri), MlflowClient(uri)
    assert len({each["run_id"] for each in results}) == 4
    for each in results:
        check_all_is_there(client, each["run_id"], Path(each["output_dir"]))
    return results


def test_server_with_postgresql(database: str, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with running_server(tmp_path / "server", store=database) as server:
        results = check(tmp_path, server.uri)
        words = [sys.executable, "-m", "serve.package"]
        packaged = result(run(words, tmp_path, MLFLOW_TRACKING_URI=server.uri))
    best = max(each["val_accuracy"] for each in results)
    assert packaged["run_id"] in {each["run_id"] for each in results if each["val_accuracy"] == best}
    assert not (tmp_path / "mlruns").exists()


def test_four_trainings_create_one_database(database: str, tmp_path: Path) -> None:
    results = check(tmp_path, database)
    words = [sys.executable, "-m", "serve.package", "--experiment", "none"]
    no_experiment = run(words, tmp_path, MLFLOW_TRACKING_URI=database)
    assert "has no experiment 'none'" in no_experiment.stderr
    assert PASSWORD not in no_experiment.stderr
    outputs = [Path(each["output_dir"]) for each in results]
    written = [path for output in outputs for path in output.rglob("*") if path.is_file()]
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []


def test_unreachable_database_costs_one_warning(tmp_path: Path) -> None:
    uri = f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{free_port()}/postgres"
    flags = (*QUICK, "--epochs", "2", "--output-dir", "output")
    done = train(*flags, cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert result(done)["run_id"] is None
    assert done.stderr.lower().count("warning") == 1
    assert "Connection refused" in done.stderr
    assert f"python -m mlp_dist.sync {tmp_path / 'output'}" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
