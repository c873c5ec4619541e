"""Rankings of runs, as tables and as CSV."""

import csv
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pandas import DataFrame

from mlp_dist.cli import compare
from mlp_dist.cli.compare import DEFAULT_METRIC, full_name, ranking, table
from mlp_dist.core.errors import UsageError
from mlp_dist.tracking.find import StoredRun
from tests.helpers.stored_runs import end_run, start_run

_numbers = count()


def a_run(name: str, accuracy: float | None = None, **fields: Any) -> StoredRun:
    """A run on MNIST; other `fields` than StoredRun's are params."""
    own = {"dataset": "mnist", "status": "FINISHED", "metrics": {}, "tags": {}}
    own |= {key: fields.pop(key) for key in list(fields) if key in own}
    if accuracy is not None:
        own["metrics"] = {"best_val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, **own["metrics"]}
    params = {"recipe": "mnist", "lr": "0.1", "output_dir": name, **{k: str(v) for k, v in fields.items()}}
    return StoredRun(run_id=f"{next(_numbers):032x}", name=name, bundle="", params=params, **own)


def names(frame: DataFrame) -> list[str]:
    return list(frame["name"])


def places(frame: DataFrame) -> list[int]:
    return list(frame["place"].dropna())


def test_best_first_and_latest_of_equals() -> None:
    found = ranking([a_run("a", 0.9), a_run("b", 0.95), a_run("c", 0.9), a_run("d", 0.95)])
    assert names(found) == ["b", "d", "a", "c"]
    assert places(found) == [1, 2, 3, 4]
    assert "mnist: 2 runs of 4, ranked by best_val_accuracy" in table(found, DEFAULT_METRIC, top=2)


def test_losses_rank_upwards_and_non_finite_values_are_not_ranked() -> None:
    values = {"a": 0.5, "b": 0.1, "c": float("nan"), "d": float("inf")}
    runs = [a_run(name, metrics={"best_val_loss": value}) for name, value in values.items()]
    assert full_name("val_loss", runs) == "best_val_loss"
    found = ranking([*runs, a_run("e")], "best_val_loss")
    assert names(found) == ["b", "a", "c", "d", "e"]
    assert places(found) == [1, 2]


def test_unknown_metric_is_rejected() -> None:
    run = a_run("a", metrics={"val/accuracy": 0.9, "test_loss": 1.0})
    with pytest.raises(UsageError, match=r"'val/acuracy'; did you mean val/accuracy\?"):
        full_name("val/acuracy", [run])


def test_unfinished_runs_come_last() -> None:
    runs = [
        a_run("failed", 1.0, status="FAILED"),
        a_run("good", 0.9),
        a_run("pruned", status="KILLED", tags={"pruned": "after epoch 2"}),
    ]
    found = ranking(runs)
    assert (names(found), places(found)) == (["good", "failed", "pruned"], [1])
    assert re.search(r"- +pruned .* PRUNED", table(found))


def test_only_differing_params_are_columns() -> None:
    runs = [
        a_run("a", 0.9, hidden_sizes="256-64", weight_decay=0.0, device="cpu"),
        # Without weight_decay, whose default is 0.
        a_run("b", 0.8, hidden_sizes="none", lr=0.05, mean="(0.1,)", num_parameters=7),
    ]
    found = ranking(runs)
    assert [name for name in found if name.startswith("param.")] == ["param.hidden_sizes", "param.lr"]
    assert list(found["param.hidden_sizes"]) == ["256-64", "none"]
    assert list(found["param.lr"]) == ["0.1", "0.05"]


@pytest.mark.slow
def test_command(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, accuracy in (("first", 0.8), ("second", 0.9)):
        run_id = start_run("x", name, {"dataset": "mnist", "lr": accuracy})
        end_run(run_id, best_epoch=2, best_val_accuracy=accuracy)
    end_run(start_run("x", "other", {"dataset": "digits"}), best_epoch=1, best_val_accuracy=0.5)
    parent = start_run("x", "parent", {})
    end_run(start_run("x", "child", {"dataset": "mnist"}, parent=parent), "KILLED")
    end_run(parent, best_epoch=1, best_val_accuracy=1.0)
    monkeypatch.setattr("sys.argv", ["compare", "--experiment", "x", "--csv", "out/runs.csv"])
    compare.main()
    out = capsys.readouterr().out
    assert "mnist: 3 runs, ranked by best_val_accuracy" in out
    found = re.findall(r"^ *([\d-]+)\*? +(\w+)", out, flags=re.MULTILINE)
    # Those on the latest run's data set come first.
    assert found == [("1", "second"), ("2", "first"), ("-", "child"), ("1", "other")]
    with (tmp_path / "out/runs.csv").open(newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert (first["place"], first["name"], first["champion"], first["param.lr"]) == (
        "1",
        "second",
        "0",
        "0.9",
    )
    assert (second["best_val_accuracy"], second["dataset"], second["status"]) == ("0.8", "mnist", "FINISHED")
