import json
import re
import subprocess
from pathlib import Path

import pytest
from launching import DATASET, environment, result, train

from mlp_dist import next_steps

ROOT = Path(__file__).resolve().parents[1]


def steps(stdout: str) -> dict[str, str]:
    """What a command's last lines, before its JSON, say that can be typed."""
    _, _, told = stdout.rpartition("\nnext\n")
    return dict(re.findall(r"^  ([\w ]+): +(.+)$", told, flags=re.M))


def typed(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a shell makes of it."""
    done = subprocess.run(
        command, shell=True, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.usefixtures("store_at_hand")
def test_from_a_training_to_an_answer_by_typing_what_is_told(tmp_path: Path) -> None:
    trained = train(*DATASET, "--epochs", "2", "--population", "2", "--experiment", "my runs", cwd=tmp_path)
    run_id = result(trained)["run_id"]
    after_training = steps(trained.stdout)
    assert set(after_training) == {"compare", "package", "serve"}
    assert run_id[:8] in typed(after_training["compare"], tmp_path).stdout

    packaged = typed(after_training["package"], tmp_path)
    assert result(packaged)["run_id"] == run_id
    assert steps(packaged.stdout) == {"serve": after_training["serve"]}

    after_starting = steps(typed(after_training["serve"], tmp_path).stdout)
    try:
        answer = json.loads(typed(after_starting["ask"], tmp_path).stdout)
        assert answer["probability"] == max(answer["probabilities"].values())
    finally:
        assert result(typed(after_starting["stop"], tmp_path)) == {"stopped": True}


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
