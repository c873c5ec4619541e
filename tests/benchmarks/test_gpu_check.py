import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from mlp_dist.core.errors import TrainingError, UsageError
from tests.helpers.asking import write_bundle


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    with pytest.raises(UsageError, match="finds no CUDA GPU here"):
        gpu_check.main()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA A100-SXM4 (80GB)", "nvidia-a100-sxm4-80gb")],
)
def test_a_card_s_file(name: str, expected: str) -> None:
    assert gpu_check.slug(name) == expected


def case(name: str, batch_size: int, notebook: float, products: float) -> dict[str, Any]:
    contestants = {
        "mlp_dist": {"times_ours": 1.0, "precision": "highest"},
        "notebook": {"times_ours": notebook},
        "products-highest": {"times_ours": products},
        "products-medium": {"times_ours": 0.01},
    }
    return {"case": name, "batch_size": batch_size, "contestants": contestants}


def test_the_goals() -> None:
    training = {"cases": [case("small", 64, 99.0, 0.8), case("large", 1024, 5.0, 0.5)]}
    found = gpu_check.goals(training, 0.9)
    assert [(goal["name"], goal["value"], goal["met"]) for goal in found] == [
        ("mnist-128-64-adam, s", 0.9, True),
        ("small: notebook / mlp_dist", 99.0, False),
        ("small: mlp_dist / products-highest", 1.25, True),
        ("large: mlp_dist / products-highest", 2.0, False),
    ]


def test_the_last_line_of_a_command_is_its_result(capfd: pytest.CaptureFixture[str]) -> None:
    code = 'import os; print("a table"); print(\'{"seconds": \' + os.environ["SECONDS_TAKEN"] + "}")'
    assert gpu_check.result_of(sys.executable, "-c", code, SECONDS_TAKEN="3") == {"seconds": 3}
    assert "a table" in capfd.readouterr().out
    with pytest.raises(TrainingError, match="exit code 3"):
        gpu_check.result_of(sys.executable, "-c", "raise SystemExit(3)")


def test_a_served_batch_is_timed(tmp_path: Path) -> None:
    assert 0 < gpu_check.batch_ms(write_bundle(tmp_path / "bundle"), "cpu", repeats=3) < 1000
