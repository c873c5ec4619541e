"""The benchmarks of recipes, handwriting and the GPU, and the command lines of all."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import gpu_check, handwriting, recipes
from benchmarks.pictures import EMPTY, PICTURES
from benchmarks.recipes import RecipeRow
from mlp_dist.core.errors import TrainingError, UsageError
from tests.helpers.launching import Trained


@pytest.mark.parametrize(
    ("recipe", "accuracies", "holds"),
    [
        ("mnist-500", [0.920, 0.922, 0.924], True),
        ("mnist-500", [0.930, 0.9301, 0.9302], True),
        ("mnist-500", [0.910, 0.911, 0.912], False),
        ("mnist-500", [0.9223], False),
        ("mnist-logistic", [0.5, 0.6], None),
    ],
    ids=str,
)
def test_published_number_holds_up_to_three_deviations_above_the_mean(
    recipe: str, accuracies: list[float], holds: bool | None
) -> None:
    assert RecipeRow(recipe, 1, accuracies, 0.5).holds is holds


def test_recipe_row_format() -> None:
    row = RecipeRow("mnist-500", 1, [0.92, 0.93], 0.456)
    assert str(row).split() == ["mnist-500", "1", "0.9224", "0.9250", "±", "0.0071", "+0.0026", "yes", "0.46"]
    assert row.to_json()["mean"] == pytest.approx(0.925)


@pytest.mark.parametrize(
    ("benchmark", "flags", "message"),
    [
        ("recipes", ["--seeds", "0"], "seeds is 0; it must be 1 or more"),
        ("recipes", ["--recipes", "mnist-50"], "unknown recipe 'mnist-50'; did you mean mnist-500?"),
        ("command", ["--repeats", "0"], "repeats is 0; it must be 1 or more"),
        ("handwriting", ["--images", "0"], "images is 0; it must be from 1 to 10000"),
        ("training", ["--epochs", "1"], "epochs is 1; it must be 2 or more"),
        ("training", ["--cases", "sgd-10"], "unknown case 'sgd-10'; did you mean sgd-100?"),
        ("training", ["--peers", "jax"], "unknown peer 'jax'"),
        ("serving", ["--seconds", "nan"], "seconds is nan; it must be 0.5 or more"),
        ("serving", ["--connections", "8", "0"], "connections is 0; it must be 1 or more"),
        ("gpu_check", [], "finds no CUDA GPU here"),
    ],
)
def test_rejects_wrong_use(
    benchmark: str, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", [benchmark, *flags])
    with pytest.raises(UsageError, match=re.escape(message)):
        import_module(f"benchmarks.{benchmark}").main()


def test_gpu_check_reads_the_last_line_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fake_benchmark.py").write_text(
        "import os, sys\nprint('a table')\nprint(os.environ['RESULT'])\nsys.exit(int(os.environ['CODE']))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpu_check.run_json("fake_benchmark", RESULT='{"seconds": 3}', CODE="0") == {"seconds": 3}
    assert "a table" in capfd.readouterr().out
    with pytest.raises(TrainingError, match="exit code 3"):
        gpu_check.run_json("fake_benchmark", RESULT="", CODE="3")


@pytest.mark.slow
def test_recipes_are_trained_and_reported(
    mnist_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--seeds", "2", "--recipes", "mnist-500", "--data-dir", str(mnist_dir)]
    monkeypatch.setattr(sys, "argv", ["recipes", *flags])
    recipes.main()
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert (result["benchmark"], result["seeds"]) == ("recipes", 2)
    (row,) = result["recipes"]
    assert row["accuracies"][0] != row["accuracies"][1]
    assert row["mean"] > 0.89
    assert row["seconds_per_epoch"] > 0
    assert f"{'mnist-500':<24}" in out


@pytest.mark.slow
def test_pictures_are_recognized_and_empty_pages_refused(
    trained: Trained,
    mnist_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--bundle", str(trained.bundle), "--images", "20", "--data-dir", str(mnist_dir)]
    monkeypatch.setattr(sys, "argv", ["handwriting", *flags])
    handwriting.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["images"]) == ("handwriting", 20)
    assert list(result["rows"]) == list(PICTURES)
    assert list(result["empty"]) == list(EMPTY)
    clean, *others = result["rows"].values()
    assert clean["auto"] == clean["exact"]
    assert all(row["auto"] >= clean["exact"] - 0.101 for row in others)
    assert sum(row["exact"] for row in others) / len(others) < clean["exact"] / 3
    assert result["goals"]["empty"]
