import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.tracking import next_steps
from mlp_dist.tracking.run_dir import RunRecord
from tests.helpers.launching import DATASET, result, train
from tests.helpers.terminals import Seen, in_terminal

ROOT = Path(__file__).resolve().parents[2]


def steps(stdout: str) -> dict[str, str]:
    """What a command's last lines, before its JSON, say that can be typed."""
    _, _, told = stdout.rpartition("\nnext\n")
    return dict(re.findall(r"^  ([\w ]+): +(.+)$", told, flags=re.M))


def typed(command: str, cwd: Path) -> Seen:
    """What a shell in a terminal makes of it."""
    seen = in_terminal(["bash", "-c", command], cwd)
    assert seen.code == 0, seen.written
    assert not [line for line in seen.screen if "|" in line or "\r" in line], "a bar is left"
    return seen


def last_line(seen: Seen) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(seen.screen[-2])
    return values


@pytest.mark.slow
@pytest.mark.usefixtures("store_at_hand")
def test_from_a_training_to_an_answer_by_typing_what_is_told(tmp_path: Path) -> None:
    trained = train(*DATASET, "--epochs", "2", "--population", "2", "--experiment", "my runs", cwd=tmp_path)
    run_id = result(trained)["run_id"]
    after_training = steps(trained.stdout)
    assert set(after_training) == {"compare", "package", "serve"}
    compared = typed(after_training["compare"], tmp_path)
    (best,) = (line for line in compared.screen if run_id[:8] in line)
    assert [line for line in compared.screen if "\x1b[1m" in line] == [best]

    packaged = typed(after_training["package"], tmp_path)
    assert "packaging: 2/3 |" in packaged.written
    assert last_line(packaged)["run_id"] == run_id
    assert steps("\n".join(packaged.screen)) == {"serve": after_training["serve"]}

    started = typed(after_training["serve"], tmp_path)
    after_starting = steps("\n".join(started.screen))
    try:
        assert "TorchServe: 2/3 |" in started.written
        assert last_line(started)["ready"]
        answer = last_line(typed(after_starting["ask"], tmp_path))
        assert answer["probability"] == max(answer["probabilities"].values())
    finally:
        assert last_line(typed(after_starting["stop"], tmp_path)) == {"stopped": True}


def test_what_is_not_the_default_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(ROOT)
    told = "\n" + next_steps.after_training("8f3a", str(ROOT / "outputs/one"), "mlp_dist")
    assert steps(told) == {
        "compare": "python launch/compare.py",
        "package": "python -m serve.package --run-id 8f3a",
        "serve": "python -m serve.server start",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    told = "\n" + next_steps.after_training(None, str(ROOT / "outputs/two words"), "seeds")
    assert steps(told) == {
        "send to MLflow": "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 "
        "python launch/sync.py 'outputs/two words'",
        "compare": "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python launch/compare.py --experiment seeds",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    monkeypatch.chdir(tmp_path)
    told = "\n" + next_steps.after_training("8f3a", str(ROOT / "outputs/one"), "mlp_dist")
    assert steps(told)["compare"] == "python -m mlp_dist.compare"


def test_runs_that_are_nested_are_sent_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunRecord(experiment="x", name="population", key="k").save(tmp_path)
    told = "\n" + next_steps.after_training(None, str(tmp_path / "member-02"), "mlp_dist")
    assert steps(told)["send to MLflow"] == "python -m mlp_dist.sync ."


def test_other_archives_and_models_are_named() -> None:
    default, other = Path("model_store/mlp.mar"), Path("model store/other.mar")
    assert steps("\n" + next_steps.after_packaging(default, default)) == {
        "serve": "python -m serve.server start"
    }
    assert steps("\n" + next_steps.after_packaging(other, default)) == {
        "serve": "python -m serve.server start 'model store/other.mar'"
    }
    assert steps("\n" + next_steps.after_starting(Path.cwd() / ".serve/golden.png", "other")) == {
        "ask": "python -m serve.client .serve/golden.png --model other",
        "stop": "python -m serve.server stop",
    }
