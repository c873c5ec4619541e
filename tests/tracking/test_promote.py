"""The champion: who becomes it, and who is refused."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlp_dist import load_model
from mlp_dist.cli import compare
from mlp_dist.core.errors import BundleError, PromotionError, TrackingError, UsageError
from mlp_dist.tracking import find, registry
from mlp_dist.tracking.promotion import promote
from mlp_dist.tracking.store import load_mlflow
from mlp_dist.tracking.upload import send
from tests.helpers.launching import ROOT, Trained, result, run
from tests.helpers.mlflow_servers import Server
from tests.helpers.stored_runs import digits_run, end_run, start_run

pytestmark = pytest.mark.slow

EXPERIMENT = "mlp_dist"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The ids of runs in a store with no champion: `good` and `alike` differ by chance, `bad` is worse."""
    mlflow = load_mlflow()
    directory = tmp_path_factory.mktemp("runs")
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
        ids["parent"] = end_run(parent, best_val_accuracy=1.0, best_epoch=1)
        ids["failed"] = end_run(start_run(EXPERIMENT, "failed", {}), "FAILED", best_val_accuracy=1.0)
        mlflow.MlflowClient().create_registered_model("something else")
        mlflow.set_tracking_uri(None)
    return {"directory": str(directory), **ids}


@pytest.fixture
def store(runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The runs, in a copy of the store: what a test changes in the database, the next does not see."""
    mlflow = load_mlflow()
    shutil.copy(f"{runs['directory']}/mlflow.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield runs
    mlflow.set_tracking_uri(None)


def champion() -> registry.Champion:
    found = registry.find_champion()
    assert found is not None
    return found


def test_the_first_is_the_champion_and_stays_it_when_asked_again(store: dict[str, str]) -> None:
    assert registry.find_champion() is None
    good = find.get_run(store["good"])
    told = promote(good)
    assert told == {
        **{"run_id": good.run_id, "model": "mlp", "version": "1", "alias": "champion"},
        "test_accuracy": good.metrics["test_accuracy"],
    }
    assert (champion().run.run_id, champion().version) == (good.run_id, "1")
    again = promote(good)
    assert (again["version"], again["only_previous"], again["only_this"], again["p_value"]) == (
        "1",
        0,
        0,
        1.0,
    )
    client = load_mlflow().MlflowClient()
    [model] = client.search_logged_models([good.experiment_id])
    [version] = client.search_model_versions("name = 'mlp'")
    assert (version.run_id, version.source) == (good.run_id, model.model_uri)
    assert (model.name, model.params["epoch"], model.source_run_id) == ("best", "3", good.run_id)
    # Those of its epoch alone, in MLflow's groups.
    assert {point.key: (point.step, point.value) for point in model.metrics} == {
        "val/accuracy": (3, 0.9),
        "val/loss": (3, 0.9),
    }
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "mlp", "version": "1"}]


def test_one_that_is_not_worse_by_more_than_chance_takes_its_place(store: dict[str, str]) -> None:
    good, alike = (find.get_run(store[name]) for name in ("good", "alike"))
    assert good.metrics["test_accuracy"] > alike.metrics["test_accuracy"]
    promote(good)
    told = promote(alike)
    assert (told["version"], champion().run.run_id) == ("2", alike.run_id)
    assert (told["previous_run_id"], told["previous_test_accuracy"]) == (
        good.run_id,
        good.metrics["test_accuracy"],
    )
    num_images = 360
    difference = (told["only_previous"] - told["only_this"]) / num_images
    assert difference == pytest.approx(good.metrics["test_accuracy"] - alike.metrics["test_accuracy"])
    assert told["p_value"] > 0.05
    assert promote(good)["version"] == "1"


def test_a_worse_one_is_refused_unless_forced(
    store: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    promote(find.get_run(store["good"]))
    bad = find.get_run(store["bad"])
    with pytest.raises(
        PromotionError,
        match=r"bad \(.*\) is worse than the champion, good \(.*\), by more than chance: 71\.67% of 360 test "
        r"images are right, and 93\.06% by the champion; \d+ by the champion alone, \d+ by this run alone "
        r"\(McNemar's exact test, p = .*e-.*\); the champion stays, and --force",
    ):
        promote(bad)
    assert champion().run.name == "good"
    # Nothing is left of it in the registry.
    assert len(load_mlflow().MlflowClient().search_model_versions("name = 'mlp'")) == 1
    told = promote(bad, force=True)
    assert (champion().run.name, told["p_value"] < 0.05) == ("bad", True)
    assert "note: bad" in capsys.readouterr().out


def test_another_data_set_is_refused_unless_forced(store: dict[str, str]) -> None:
    promote(find.get_run(store["good"]))
    other = replace(find.get_run(store["alike"]), dataset="folder:/pets")
    with pytest.raises(
        PromotionError, match=r"alike .* was trained on folder:/pets, and the champion, good .*, on digits"
    ):
        promote(other)
    assert champion().run.name == "good"
    assert "p_value" not in promote(other, force=True)
    assert champion().run.name == "alike"


def test_images_that_changed_are_another_data_set(store: dict[str, str]) -> None:
    run = find.get_run(store["good"])
    now, before = replace(run, digest="a"), replace(run, digest="b")
    assert not now.is_on_data_of(before)
    assert now.is_on_data_of(replace(before, digest=""))
    assert now.is_on_data_of(replace(before, params={**run.params, "image_size": "20"}))


def test_a_champion_of_no_run_is_replaced_by_force(
    store: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = load_mlflow().MlflowClient()
    client.create_registered_model("mlp")
    client.create_model_version("mlp", "/somewhere/else")
    client.set_registered_model_alias("mlp", "champion", "1")
    good = find.get_run(store["good"])
    with pytest.raises(PromotionError, match=r"the champion, version 1 of mlp, is of no run .* RUN --force"):
        promote(good)
    monkeypatch.setattr("sys.argv", ["compare", "--experiment", EXPERIMENT])
    compare.main()
    assert "good" in capsys.readouterr().out
    assert promote(good, force=True)["version"] == "2"
    assert champion().run.name == "good"


def test_a_champion_that_cannot_be_scored_any_more(store: dict[str, str]) -> None:
    promote(find.get_run(store["good"]))
    location = Path(load_mlflow().MlflowClient().get_model_version_download_uri("mlp", "1"))
    (location / "weights.pt").rename(location / "aside")
    try:
        with pytest.raises(
            PromotionError, match=r"good .* cannot be compared with: .* weights.pt is missing"
        ):
            promote(find.get_run(store["alike"]))
        assert promote(find.get_run(store["alike"]), force=True)["version"] == "2"
    finally:
        (location / "aside").rename(location / "weights.pt")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("running", TrackingError, "is RUNNING, not FINISHED"),
        ("failed", TrackingError, "is FAILED, not FINISHED"),
        ("nope", UsageError, "has no run 'nope': no id begins so, and no run is called so"),
        ("it's", UsageError, 'has no run "it\'s"'),
        ("0123456789abcdef0123456789abcdef", UsageError, "has no run '0123456789abcdef0123456789abcdef'"),
    ],
)
def test_what_is_no_finished_run(
    name: str, error: type[Exception], message: str, store: dict[str, str]
) -> None:
    with pytest.raises(error, match=message):
        find.find_run(name)


def test_a_run_is_found_by_its_name_or_the_beginning_of_its_id(store: dict[str, str]) -> None:
    good = store["good"]
    assert {find.find_run(text).run_id for text in (good, good[:12], "good")} == {good}
    twice = end_run(start_run(EXPERIMENT, "good", {}), best_epoch=1)
    with pytest.raises(UsageError, match=f"'good' may be any of 2 runs; give the id of one: .*{twice}"):
        find.find_run("good")


def test_a_bundle_that_is_not_as_good_as_its_run_reports_is_no_champion(store: dict[str, str]) -> None:
    run_id = digits_run(EXPERIMENT, "liar", noise=0, val_accuracy=0.9)
    [spec] = Path(store["directory"]).glob(f"mlruns/*/{run_id}/artifacts/bundle/bundle.json")
    values = json.loads(spec.read_text())
    spec.write_text(json.dumps({**values, "metrics": {**values["metrics"], "test_accuracy": 0.99}}))
    with pytest.raises(BundleError, match=r"reports a test accuracy of 0\.99, but its bundle scores"):
        promote(find.get_run(run_id))
    assert registry.find_champion() is None


# What is taken where nothing is named


def test_the_champion_is_taken_and_the_best_is_told(
    store: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    # The parent of nested runs says it is best, and has no model.
    assert registry.chosen_run().run_id == store["alike"]
    assert capsys.readouterr().out == ""
    promote(find.get_run(store["good"]))
    assert registry.chosen_run().run_id == store["good"]
    out = capsys.readouterr().out
    assert out == (
        f"note: this is the champion, version 1 of mlp; by validation accuracy alike ({store['alike']}) is "
        "best, with 95.00%: --run-id takes that\n"
    )
    assert registry.chosen_run(metric="val_accuracy").run_id == store["alike"]
    assert registry.chosen_run(experiment=EXPERIMENT).run_id == store["alike"]
    assert (load_model().spec.run_id, load_model(metric="val_accuracy").spec.run_id) == (
        store["good"],
        store["alike"],
    )
    capsys.readouterr()
    promote(find.get_run(store["alike"]))
    assert registry.chosen_run().run_id == store["alike"]
    assert capsys.readouterr().out == "note: this is the champion, version 2 of mlp\n"


def test_the_champion_stays_the_version_s_files_whatever_its_run_did_since(store: dict[str, str]) -> None:
    promote(find.get_run(store["good"]))
    load_mlflow().MlflowClient().update_run(store["good"], "RUNNING")
    found = champion().run
    assert (found.bundle, found.status) == ("models:/mlp/1", "RUNNING")
    assert load_model().spec.run_id == store["good"]


def test_commands(store: dict[str, str], tmp_path: Path) -> None:
    script = str(ROOT / "launch/promote.py")
    told = result(run([sys.executable, script, store["good"][:10]], tmp_path))
    assert (told["run_id"], told["version"]) == (store["good"], "1")
    refused = run([sys.executable, script, "bad"], tmp_path)
    assert (refused.returncode, refused.stdout.count("\n")) == (1, 1)
    assert "error: bad (" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = run([sys.executable, "-m", "serve.package"], tmp_path)
    assert result(done)["run_id"] == store["good"]
    assert "note: this is the champion, version 1 of mlp; by validation accuracy alike" in done.stdout
    assert f"packaging run good ({store['good']}), trained on digits" in done.stdout


def test_a_run_that_was_sent_to_another_mlflow_is_one_there(
    trained: Trained, mlflow: Any, tmp_path: Path
) -> None:
    shutil.copytree(trained.result["output_dir"], tmp_path / "output")
    run_id = send(tmp_path / "output")
    assert run_id != trained.result["run_id"]
    assert promote(find.get_run(run_id))["test_accuracy"] == trained.result["test_accuracy"]


def test_on_a_server(mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = load_mlflow()
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_server.uri)
    try:
        run = find.get_run(digits_run("champions", "served", noise=0, val_accuracy=0.9))
        versions = [promote(run)["version"], promote(run)["version"]]
        assert versions == [champion().version] * 2
        assert champion().run.run_id == run.run_id
        assert load_model().spec.run_id == run.run_id
        mlflow.set_tracking_uri(mlflow_server.uri.replace("//", "//someone:secret@"))
        for find_it in (find.find_run, find.get_run, find.best_run):
            with pytest.raises(UsageError, match=r"MLflow at http://someone:\*\*\*@127") as raised:
                find_it("nope")
            assert "secret" not in str(raised.value)
    finally:
        mlflow.set_tracking_uri(mlflow_server.uri)
        mlflow.MlflowClient().delete_registered_model("mlp")
        mlflow.set_tracking_uri(before)
    assert list(tmp_path.iterdir()) == []
