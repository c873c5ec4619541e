"""The commands printed at the end of a command."""

import re
from pathlib import Path

import pytest

from mlp_dist.tracking import next_steps
from mlp_dist.tracking.run_dir import RunRecord, Uploaded

RUNS = (
    "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning"
    "&orderByKey=metrics.%60best_val_accuracy%60&orderByAsc=false"
)


def parse(text: str) -> dict[str, str]:
    return dict(re.findall(r"^  ([\w ]+): +(.+)$", text, flags=re.M))


def test_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    Uploaded(run_id="8f3a", experiment_id="7").save(tmp_path)
    assert parse(next_steps.after_training("8f3a", str(tmp_path), None)) == {
        "see": f"mlflow ui, then {RUNS}",
        "compare": "python -m mlp_dist.compare",
        "package": "python -m serve.package --run-id 8f3a",
        "serve": "python -m serve.server start",
    }
    store = "MLFLOW_TRACKING_URI=http://127.0.0.1:5000"
    monkeypatch.setenv(*store.split("="))
    assert parse(next_steps.after_training(None, str(tmp_path / "two words"), "seeds")) == {
        "send to MLflow": f"{store} python -m mlp_dist.sync 'two words'",
        "compare": f"{store} python -m mlp_dist.compare --experiment seeds",
    }
    # Nested runs are sent together, with their parent.
    RunRecord(experiment="x", name="sweep", key="k").save(tmp_path)
    steps = parse(next_steps.after_training(None, str(tmp_path / "trial-0002"), None))
    assert steps["send to MLflow"] == f"{store} python -m mlp_dist.sync ."


@pytest.mark.parametrize(
    ("store", "seen"),
    [
        ("http://me:secret@127.0.0.1:5000/", RUNS),
        ("sqlite:///a b.db", f"mlflow ui --backend-store-uri 'sqlite:///a b.db', then {RUNS}"),
        ("postgresql://me:secret@db/x", f'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI", then {RUNS}'),
    ],
)
def test_address_of_the_runs(store: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    Uploaded(run_id="8f3a", experiment_id="7").save(tmp_path)
    steps = next_steps.after_training("8f3a", str(tmp_path), None)
    assert parse(steps)["see"] == seen
    assert "secret" not in steps


def test_other_archives_and_models() -> None:
    default, other = Path("model_store/mlp.mar"), Path("model store/other.mar")
    assert parse(next_steps.after_packaging(other, default)) == {
        "serve": "python -m serve.server start 'model store/other.mar'"
    }
    assert parse(next_steps.after_starting(Path.cwd() / ".serve/golden.png", "other")) == {
        "ask": "python -m serve.client .serve/golden.png --model other",
        "stop": "python -m serve.server stop",
    }
