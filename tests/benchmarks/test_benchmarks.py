"""What each benchmark measures, on small samples, and its command line."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import serving_servers
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.pictures import EMPTY, PICTURES
from benchmarks.serving import CLASSIFIER
from tests.helpers.calling import Call
from tests.helpers.launching import Trained, result
from tests.helpers.pens import FIVE, SEVEN, drawn


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("recipes --seeds 0", "argument --seeds: 0 is not 1 or more"),
        ("recipes --recipes mnist-50", "unknown recipe 'mnist-50'; did you mean mnist-500?"),
        ("training --peers jax", "invalid choice: 'jax'"),
        ("serving --seconds nan", "argument --seconds: nan is not 0.5 or more"),
        ("gpu_check", "finds no CUDA GPU here"),
    ],
)
def test_rejects_wrong_use(line: str, message: str, call: Call) -> None:
    done = call(f"benchmarks.{line}", ACCELERATE_USE_CPU="true")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_recipes_are_trained_and_reported(mnist_dir: Path, call: Call) -> None:
    values = result(call(f"benchmarks.recipes --seeds 2 --recipes mnist-500 --data-dir {mnist_dir}"))
    assert (values["benchmark"], values["seeds"]) == ("recipes", 2)
    (row,) = values["recipes"]
    assert row["accuracies"][0] != row["accuracies"][1]
    assert row["mean"] > 0.89
    assert row["published"] == 0.9224


@pytest.mark.nightly
def test_pictures_are_recognized_and_empty_pages_refused(
    trained: Trained, mnist_dir: Path, call: Call
) -> None:
    flags = f"--bundle {trained.bundle} --images 20 --data-dir {mnist_dir}"
    values = result(call(f"benchmarks.handwriting {flags}"))
    assert (values["benchmark"], values["images"]) == ("handwriting", 20)
    assert list(values["rows"]) == list(PICTURES)
    assert list(values["empty"]) == list(EMPTY)
    clean, *others = values["rows"].values()
    assert clean["auto"] == clean["exact"]
    assert all(row["auto"] >= clean["exact"] - 0.101 for row in others)
    assert sum(row["exact"] for row in others) / len(others) < clean["exact"] / 3
    assert values["goals"]["empty"]


@pytest.mark.slow
def test_handwriting_is_measured_by_folder(trained: Trained, tmp_path: Path, call: Call) -> None:
    pages = {"anna/5-1.png": drawn(FIVE), "ben/7-1.png": drawn(SEVEN), "ben/7-2.png": 0 * drawn()}
    for name, page in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(page).save(tmp_path / name)
    line = f"benchmarks.handwriting --bundle {trained.bundle} {tmp_path}"
    rows = result(call(line))["sources"]
    assert [(Path(name).name, row["images"], row["refused"]) for name, row in rows.items()] == [
        ("anna", 1, 0),
        ("ben", 2, 1),
        ("all", 3, 1),
    ]
    last = rows["all"]
    assert last["of_read"] == pytest.approx(1 - last["mistakes"] / 2) == last["auto"] * 3 / 2
    assert 0.1 < last["mean_probability"] < 1
    (tmp_path / "ben" / "seven.png").touch()
    assert "seven.png: the name must begin with a class and '-'" in call(line).stderr


@pytest.mark.nightly
def test_contestants_are_timed_and_missing_ones_named(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setitem(PEERS, "nowhere", Peer("nowhere:prepare", ("no_such_package",)))
    flags = "--dataset digits --cases sgd-100 --repeats 1 --peers notebook accelerate nowhere"
    done = call(f"benchmarks.training {flags}")
    values = result(done)
    assert "skipped: nowhere (no_such_package is not installed" in done.stdout
    assert values["skipped"] == {"nowhere": ["no_such_package"]}
    (case,) = values["cases"]
    assert set(case["contestants"]) == {OURS, "notebook", "accelerate"}
    for each in case["contestants"].values():
        assert each["median"] > 0
        assert each["accuracies"][0] > 0.4


@pytest.mark.nightly
def test_both_handlers_are_measured(
    packaged: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    archive = serving_servers.unpack(packaged, tmp_path / "unpacked", trained.result["dataset"])
    monkeypatch.setattr(serving_servers, "train", lambda directory: archive)
    cells: list[dict[str, Any]] = result(
        call("benchmarks.serving --rounds 2 --seconds 0.5 --connections 1 4")
    )["cells"]
    places = [(each["name"], each["connections"]) for each in cells]
    assert places == [(OURS, 1), (CLASSIFIER, 1), (OURS, 4), (CLASSIFIER, 4)]
    for each in cells:
        assert len(each["rates"]) == 2
        assert 0 < each["p50"] <= each["p99"]
        assert each["cpu"] > 0
