"""Promotion to champion, and the choice of the run to package."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from mlp_dist import load_model
from mlp_dist.cli import promote as promote_command
from mlp_dist.core.errors import BundleError, PromotionError, TrackingError, UsageError
from mlp_dist.tracking import champion, find
from mlp_dist.tracking.champion import promote
from mlp_dist.tracking.find import StoredRun
from mlp_dist.tracking.store import load_mlflow
from tests.helpers.mlflow_servers import running_server
from tests.helpers.stored_runs import digits_run, end_run, start_run

pytestmark = pytest.mark.slow

EXPERIMENT = "mlp_dist"


@pytest.fixture(scope="module")
def runs(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The ids of runs in a store without a champion: `good` and `alike` do not differ significantly, `bad`
    is worse.
    """
    mlflow = load_mlflow()
    directory = tmp_path_factory.mktemp("runs")
    shutil.copy(empty_store, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        mlflow.set_tracking_uri(f"sqlite:///{directory}/mlflow.db")
        ids = {
            "good": digits_run(EXPERIMENT, "good", noise=0, val_accuracy=0.90),
            "alike": digits_run(EXPERIMENT, "alike", noise=0.5, val_accuracy=0.95),
            "bad": digits_run(EXPERIMENT, "bad", noise=2, val_accuracy=0.80),
            "running": start_run(EXPERIMENT, "running", {}),
        }
        parent = start_run(EXPERIMENT, "parent", {})
        start_run(EXPERIMENT, "child", {}, parent=parent)
        end_run(parent, best_val_accuracy=1.0, best_epoch=1)
        end_run(start_run(EXPERIMENT, "failed", {}), "FAILED", best_val_accuracy=1.0)
        mlflow.set_tracking_uri(None)
    return {"directory": str(directory), **ids}


@pytest.fixture
def store(runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The runs in a copy of the database."""
    mlflow = load_mlflow()
    shutil.copy(f"{runs['directory']}/mlflow.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield runs
    mlflow.set_tracking_uri(None)


def the_champion() -> StoredRun:
    found = champion.find_champion()
    assert found is not None
    return found


def test_first_run_becomes_champion(store: dict[str, str]) -> None:
    assert champion.find_champion() is None
    good = find.find_run(store["good"])
    assert promote(good) == {
        **{"run_id": good.run_id, "model": "mlp", "version": "1", "alias": "champion"},
        "test_accuracy": good.metrics["test_accuracy"],
    }
    assert (the_champion().run_id, the_champion().bundle) == (good.run_id, "models:/mlp/1")
    again = promote(good)
    assert [again[name] for name in ("version", "only_previous", "only_this", "p_value")] == ["1", 0, 0, 1.0]
    client = load_mlflow().MlflowClient()
    [model] = [each for each in client.search_logged_models(["1"]) if each.source_run_id == good.run_id]
    [version] = client.search_model_versions("name = 'mlp'")
    assert (version.run_id, version.source) == (good.run_id, model.model_uri)
    assert (model.name, model.params["epoch"], model.source_run_id) == ("good", "3", good.run_id)


def test_insignificantly_worse_run_replaces_champion(store: dict[str, str]) -> None:
    good, alike = (find.find_run(store[name]) for name in ("good", "alike"))
    lost = good.metrics["test_accuracy"] - alike.metrics["test_accuracy"]
    assert lost > 0
    promote(good)
    result = promote(alike)
    assert (result["version"], the_champion().run_id) == ("2", alike.run_id)
    assert result["previous_run_id"] == good.run_id
    only_previous, only_this = result["only_previous"], result["only_this"]
    assert (only_previous - only_this) / 360 == pytest.approx(lost)
    assert result["p_value"] == binomtest(only_this, only_previous + only_this).pvalue > 0.05
    assert promote(good)["version"] == "1"


def test_significantly_worse_run_is_refused(store: dict[str, str]) -> None:
    promote(find.find_run(store["good"]))
    bad = find.find_run(store["bad"])
    with pytest.raises(
        PromotionError, match=r"bad .* is significantly worse than the champion, good .*--force replaces it"
    ):
        promote(bad)
    assert the_champion().name == "good"
    result = promote(bad, force=True)
    assert (the_champion().name, result["p_value"] < 0.05) == ("bad", True)


def test_other_data_set_is_refused(store: dict[str, str]) -> None:
    promote(find.find_run(store["good"]))
    alike = find.find_run(store["alike"])
    other = replace(alike, dataset="folder:/pets")
    with pytest.raises(
        PromotionError, match=r"alike .* was trained on folder:/pets, and the champion, good .*, on digits"
    ):
        promote(other)
    assert "p_value" not in promote(other, force=True)
    assert the_champion().name == "alike"


def test_champion_without_run_is_replaced_by_force(store: dict[str, str]) -> None:
    client = load_mlflow().MlflowClient()
    client.create_registered_model("mlp")
    client.create_model_version("mlp", "/somewhere/else")
    client.set_registered_model_alias("mlp", "champion", "1")
    good = find.find_run(store["good"])
    with pytest.raises(
        PromotionError,
        match=r"version 1 of mlp is the champion, but its run is not in MLflow; .* RUN --force",
    ):
        promote(good)
    assert promote(good, force=True)["version"] == "2"


# MLflow warns of its own type hints.
@pytest.mark.filterwarnings("ignore:.*type hint")
def test_a_champion_in_the_trash_or_without_its_run(store: dict[str, str]) -> None:
    run_id = digits_run(EXPERIMENT, "gone", noise=0, val_accuracy=0.9)
    promote(find.find_run(run_id))
    load_mlflow().MlflowClient().delete_run(run_id)
    with pytest.raises(PromotionError, match=f"mlflow runs restore --run-id {run_id}"):
        champion.chosen_run()
    uri = load_mlflow().get_tracking_uri()
    words = ["gc", "--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", run_id]
    assert CliRunner().invoke(import_module("mlflow.cli").cli, words).exit_code == 0
    chosen = champion.chosen_run()
    assert (chosen.run_id, chosen.name, chosen.dataset) == (run_id, "gone", "digits")
    assert load_model().spec.run_id == run_id
    assert promote(find.find_run(store["good"]))["previous_run_id"] == run_id


def test_bundle_must_reach_reported_accuracy(store: dict[str, str]) -> None:
    run_id = digits_run(EXPERIMENT, "liar", noise=0, val_accuracy=0.9, reported=0.99)
    with pytest.raises(BundleError, match=r"reports a test accuracy of 0\.99, but its bundle scores"):
        promote(find.find_run(run_id))
    assert champion.find_champion() is None


def test_find_run(store: dict[str, str]) -> None:
    good = store["good"]
    assert {find.find_run(text).run_id for text in (good, good[:12], "good")} == {good}
    twice = end_run(start_run(EXPERIMENT, "good", {}), best_epoch=1)
    with pytest.raises(UsageError, match=f"'good' matches 2 runs; give the id of one: .*{twice}"):
        find.find_run("good")
    for name, status in (("running", "RUNNING"), ("failed", "FAILED")):
        with pytest.raises(TrackingError, match=f"is {status} and has no model"):
            find.find_run(name)
    for name in ("it's", "0123456789abcdef" * 2):
        with pytest.raises(UsageError, match=f"has no run .{name}."):
            find.find_run(name)


def test_champion_is_packaged_by_default(
    store: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The parent of nested runs has the best metric, but no model.
    assert champion.chosen_run().run_id == store["alike"]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.argv", ["promote", store["good"][:10]])
    promote_command.main()
    promoted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (promoted["run_id"], promoted["version"]) == (store["good"], "1")
    assert champion.chosen_run().run_id == store["good"]
    assert capsys.readouterr().out == (
        "note: this is the champion, models:/mlp/1; --run-id selects another run\n"
    )
    assert champion.chosen_run(experiment=EXPERIMENT).run_id == store["alike"]
    # The version's files stay the champion's if its run goes on.
    load_mlflow().MlflowClient().update_run(store["good"], "RUNNING")
    assert (the_champion().bundle, the_champion().status) == ("models:/mlp/1", "RUNNING")
    assert load_model().spec.run_id == store["good"]
    assert load_model(metric="val_accuracy").spec.run_id == store["alike"]


@pytest.mark.nightly
def test_server(tmp_path: Path, mlflow: Any) -> None:
    (tmp_path / "server").mkdir()
    with running_server(tmp_path / "server") as server:
        mlflow.set_tracking_uri(server.uri)
        run = find.find_run(digits_run("champions", "served", noise=0, val_accuracy=0.9))
        assert [promote(run)["version"], promote(run)["version"]] == ["1", "1"]
        assert the_champion().bundle == "models:/mlp/1"
        assert load_model().spec.run_id == run.run_id
        mlflow.set_tracking_uri(server.uri.replace("//", "//someone:secret@"))
        with pytest.raises(UsageError, match=r"MLflow at http://someone:\*\*\*@127") as raised:
            find.find_run("nope")
        assert "secret" not in str(raised.value)
