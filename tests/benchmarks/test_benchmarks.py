import json
import sys
from pathlib import Path

import pytest

from benchmarks import tracking
from benchmarks.recipes import Row
from tests.helpers.launching import ROOT, run


@pytest.mark.parametrize(
    ("recipe", "accuracies", "holds"),
    [
        ("mnist-500", [0.920, 0.922, 0.924], True),
        ("mnist-500", [0.930, 0.9301, 0.9302], True),
        ("mnist-500", [0.910, 0.911, 0.912], False),
        ("mnist-500", [0.9224], True),
        ("mnist-500", [0.9223], False),
        ("mnist-logistic", [0.5, 0.6], None),
    ],
    ids=str,
)
def test_a_published_number_holds_within_three_deviations_or_below(
    recipe: str, accuracies: list[float], holds: bool | None
) -> None:
    assert Row(recipe, 1, accuracies, 0.5).holds is holds


def test_a_row_shows_what_was_measured() -> None:
    row = Row("mnist-500", 1, [0.92, 0.93], 0.456)
    assert str(row).split() == ["mnist-500", "1", "0.9224", "0.9250", "±", "0.0071", "+0.0026", "yes", "0.46"]
    assert row.to_json()["mean"] == pytest.approx(0.925)


@pytest.mark.slow
def test_the_recipes_are_trained_and_the_last_line_is_json(mnist_dir: Path) -> None:
    flags = ["--seeds", "2", "--recipes", "mnist-logistic", "mnist-500", "--data-dir", str(mnist_dir)]
    done = run([sys.executable, "-m", "benchmarks.recipes", *flags], ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["benchmark"], result["seeds"]) == ("recipes", 2)
    assert [row["recipe"] for row in result["recipes"]] == ["mnist-logistic", "mnist-500"]
    for row in result["recipes"]:
        assert len(row["accuracies"]) == 2
        assert row["accuracies"][0] != row["accuracies"][1]
        assert row["mean"] > 0.89
        assert row["seconds_per_epoch"] > 0
        assert f"{row['recipe']:<24}" in done.stdout


@pytest.mark.slow
def test_calibration_without_and_with_the_temperature(mnist_dir: Path) -> None:
    flags = ["--seeds", "1", "--recipes", "mnist-logistic", "--data-dir", str(mnist_dir)]
    rows = []
    for held_out in ([], ["--val-size", "5000"]):
        done = run([sys.executable, "-m", "benchmarks.calibration", *flags, *held_out], ROOT)
        assert done.returncode == 0, done.stderr
        rows += json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["num_validation"] for row in rows] == [0, 5000]
    assert rows[0]["temperature"] == [1]
    assert rows[0]["test_ece"] == rows[0]["test_ece_uncalibrated"]
    assert rows[1]["test_ece"][0] < 0.6 * rows[1]["test_ece_uncalibrated"][0]


@pytest.mark.slow
def test_folders_start_sooner_the_second_time() -> None:
    done = run([sys.executable, "-m", "benchmarks.folders", "--scale", "0.05"], ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [case["files"] for case in result["cases"]] == [3000, 250]
    for case in result["cases"]:
        assert case["second"] < case["first"]


@pytest.mark.slow
def test_a_training_is_measured_with_its_record_and_without(tmp_path: Path) -> None:
    for which in ("with", "without"):
        store = tmp_path / which
        store.mkdir()
        training = tracking.train(which, ["--dataset", "digits", "--epochs", "2", "--log-every", "1"], store)
        assert (len(training.epochs), len(training.held_epochs)) == (2, 2)
        # The digits that are trained on are 14 batches.
        assert len(training.held_steps) == 2 * 14
        assert 0 < sum(training.epochs) < training.whole
        assert 0 < max(training.held_steps) < min(training.epochs)
        assert (store / "mlflow.db").exists() == (which == "with")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "flags", "message"),
    [
        ("recipes", ["--seeds", "0"], "seeds is 0; it must be 1 or more"),
        ("recipes", ["--recipes", "mnist-50"], "unknown recipe 'mnist-50'; did you mean mnist-500?"),
        ("folders", ["--scale", "0"], "scale is 0; it must be from 0.001 to 100"),
        ("command", ["--repeats", "0"], "repeats is 0; it must be 1 or more"),
        ("processes", ["--repeats", "0"], "repeats is 0; it must be 1 or more"),
        ("tracking", ["--epochs", "0"], "epochs is 0; it must be 1 or more"),
    ],
)
def test_wrong_use(benchmark: str, flags: list[str], message: str) -> None:
    done = run([sys.executable, "-m", f"benchmarks.{benchmark}", *flags], ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
