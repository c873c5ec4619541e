"""The benchmarks of recipes, handwriting and the GPU, and the command lines of all."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import handwriting, recipes
from benchmarks.pictures import EMPTY, PICTURES
from mlp_dist.core.errors import UsageError
from tests.helpers.launching import Trained
from tests.helpers.pens import FIVE, SEVEN, drawn


@pytest.mark.parametrize(
    ("benchmark", "flags", "message"),
    [
        ("recipes", ["--seeds", "0"], "seeds is 0; it must be 1 or more"),
        ("recipes", ["--recipes", "mnist-50"], "unknown recipe 'mnist-50'; did you mean mnist-500?"),
        ("command", ["--repeats", "0"], "repeats is 0; it must be 1 or more"),
        ("handwriting", ["--images", "0"], "images is 0; it must be from 1 to 10000"),
        ("training", ["--peers", "jax"], "unknown peer 'jax'"),
        ("serving", ["--seconds", "nan"], "seconds is nan; it must be 0.5 or more"),
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


@pytest.mark.slow
def test_recipes_are_trained_and_reported(
    mnist_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--seeds", "2", "--recipes", "mnist-500", "--data-dir", str(mnist_dir)]
    monkeypatch.setattr(sys, "argv", ["recipes", *flags])
    recipes.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["seeds"]) == ("recipes", 2)
    (row,) = result["recipes"]
    assert row["accuracies"][0] != row["accuracies"][1]
    assert row["mean"] > 0.89


@pytest.mark.nightly
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


@pytest.mark.slow
def test_handwriting_is_measured_by_folder(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, page in (
        ("anna/5-1.png", drawn(FIVE)),
        ("ben/7-1.png", drawn(SEVEN)),
        ("ben/7-2.png", 0 * drawn()),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(page).save(tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["handwriting", "--bundle", str(trained.bundle), str(tmp_path)])
    handwriting.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["sources"]
    assert [(Path(name).name, row["images"], row["refused"]) for name, row in rows.items()] == [
        ("anna", 1, 0),
        ("ben", 2, 1),
        ("all", 3, 1),
    ]
    last = rows["all"]
    assert last["of_read"] == pytest.approx(1 - last["mistakes"] / 2) == last["auto"] * 3 / 2
    assert 0.1 < last["mean_probability"] < 1
    (tmp_path / "ben" / "seven.png").touch()
    with pytest.raises(UsageError, match=r"seven.png: the name must begin with a class and '-'"):
        handwriting.main()
