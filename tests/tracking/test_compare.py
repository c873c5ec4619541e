"""Rankings of runs, as tables and as CSV."""

import csv
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pandas import DataFrame

from mlp_dist.cli import compare
from mlp_dist.core.errors import UsageError
from mlp_dist.tracking.compare_runs import DEFAULT_METRIC, format_ranking, full_name, rank_runs
from mlp_dist.tracking.find import StoredRun
from tests.helpers.stored_runs import end_run, start_run

_numbers = count()


def a_run(name: str, accuracy: float | None = None, **fields: Any) -> StoredRun:
    """A run on MNIST; other `fields` than StoredRun's are params."""
    own = {"dataset": "mnist", "status": "FINISHED", "digest": "", "metrics": {}, "tags": {}}
    own |= {key: fields.pop(key) for key in list(fields) if key in own}
    if accuracy is not None:
        own["metrics"] = {"best_val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, **own["metrics"]}
    params = {"recipe": "mnist", "lr": "0.1", "output_dir": name, **{k: str(v) for k, v in fields.items()}}
    return StoredRun(run_id=f"{next(_numbers):032x}", name=name, bundle="", params=params, **own)


def names(ranking: DataFrame) -> list[str]:
    return list(ranking["name"])


def places(ranking: DataFrame) -> list[int]:
    return list(ranking["place"].dropna())


def test_best_first_and_latest_of_equals() -> None:
    [ranking] = rank_runs([a_run("a", 0.9), a_run("b", 0.95), a_run("c", 0.9), a_run("d", 0.95)])
    assert names(ranking) == ["b", "d", "a", "c"]
    assert places(ranking) == [1, 2, 3, 4]
    assert "mnist: 2 runs of 4, ranked by best_val_accuracy" in format_ranking(ranking, DEFAULT_METRIC, top=2)


def test_losses_rank_upwards_and_non_finite_values_are_not_ranked() -> None:
    values = {"a": 0.5, "b": 0.1, "c": float("nan"), "d": float("inf")}
    runs = [a_run(name, metrics={"best_val_loss": value}) for name, value in values.items()]
    assert full_name("val_loss", runs) == "best_val_loss"
    [ranking] = rank_runs([*runs, a_run("e")], "best_val_loss")
    assert names(ranking) == ["b", "a", "c", "d", "e"]
    assert places(ranking) == [1, 2]


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
    [ranking] = rank_runs(runs)
    assert (names(ranking), places(ranking)) == (["good", "failed", "pruned"], [1])
    assert re.search(r"- +pruned .* PRUNED", format_ranking(ranking, DEFAULT_METRIC))


def test_only_differing_params_are_columns() -> None:
    runs = [
        a_run("a", 0.9, hidden_sizes=(256, 64), weight_decay=0.0, clip_norm=None, device="cpu"),
        # Without weight_decay, whose default is 0.
        a_run("b", 0.8, hidden_sizes=(), lr=0.05, mean="(0.1,)", num_parameters=7),
    ]
    [ranking] = rank_runs(runs)
    assert [name for name in ranking if name.startswith("param.")] == ["param.hidden_sizes", "param.lr"]
    assert list(ranking["param.hidden_sizes"]) == ["256-64", "none"]
    assert list(ranking["param.lr"]) == ["0.1", "0.05"]


def test_data_sets_are_ranked_separately() -> None:
    runs = [
        a_run("small", 0.5, dataset="digits"),
        a_run("mnist", 0.9, digest="a", image_size=28),
        a_run("mnist at 20", 0.8, digest="b", image_size=20),
        a_run("changed mnist", 0.95, digest="c", image_size=28),
    ]
    found = [names(ranking) for ranking in rank_runs(runs)]
    assert found == [["small"], ["mnist", "mnist at 20"], ["changed mnist"]]


@pytest.mark.slow
def test_command(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, accuracy in (("first", 0.8), ("second", 0.9)):
        run_id = start_run("x", name, {"dataset": "mnist", "lr": accuracy})
        end_run(run_id, best_epoch=2, best_val_accuracy=accuracy)
    parent = start_run("x", "parent", {})
    end_run(start_run("x", "child", {"dataset": "mnist"}, parent=parent), "KILLED")
    end_run(parent, best_epoch=1, best_val_accuracy=1.0)
    monkeypatch.setattr("sys.argv", ["compare", "--experiment", "x", "--csv", "out/runs.csv"])
    compare.main()
    out = capsys.readouterr().out
    assert "mnist: 3 runs, ranked by best_val_accuracy" in out
    found = re.findall(r"^ *([\d-]+)\*? +(\w+)", out, flags=re.MULTILINE)
    assert found == [("1", "second"), ("2", "first"), ("-", "child")]
    with (tmp_path / "out/runs.csv").open(newline="") as file:
        first, second, _ = csv.DictReader(file)
    assert (first["place"], first["name"], first["champion"], first["param.lr"]) == (
        "1",
        "second",
        "0",
        "0.9",
    )
    assert (second["best_val_accuracy"], second["dataset"], second["status"]) == ("0.8", "mnist", "FINISHED")
