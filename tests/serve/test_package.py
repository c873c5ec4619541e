import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import MlpDistError, PackagingError, UsageError
from serve import package
from serve.archive import read_archive
from serve.inference.checksums import MANIFEST
from serve.package import build_archive, check_archive, seal
from tests.helpers.handlers import write_bundle
from tests.helpers.launching import ROOT, Trained
from tests.helpers.stored_runs import digits_run

pytestmark = pytest.mark.slow

Main = Callable[..., None]


@pytest.fixture
def main(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Runs `python -m serve.package` with flags, in this process, beside the trained run."""
    monkeypatch.chdir(trained.directory)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained.directory}/mlflow.db")

    def call(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["serve.package", *flags])
        package.main()

    return call


def test_last_line(packaged: Path, packaged_result: dict[str, object], trained: Trained) -> None:
    names = {"mar", "run_id", "version", "sha256", "test_accuracy", "test_ece", "temperature"}
    assert set(packaged_result) == names
    for name in ("run_id", "test_accuracy", "test_ece", "temperature"):
        assert packaged_result[name] == trained.result[name]
    assert packaged_result["sha256"] == hashlib.sha256(packaged.read_bytes()).hexdigest()
    assert read_archive(packaged).version == packaged_result["version"]


@pytest.mark.nightly
def test_mnist_is_packaged_with_its_accuracy(trained_on_mnist: Trained, packaged_mnist: Path) -> None:
    spec = read_archive(packaged_mnist).spec
    assert spec.run_id == trained_on_mnist.result["run_id"]
    assert spec.metrics["test_accuracy"] == trained_on_mnist.result["test_accuracy"] > 0.97
    assert spec.preprocess == "auto"


def test_archive_contents(packaged: Path, trained: Trained) -> None:
    packages = ("mlp_dist/core", "serve/inference")
    code = {str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).rglob("*.py")}
    bundle = {"weights.pt", "bundle.json", "golden.png"}
    settings = {"handler.py", "model-config.yaml", MANIFEST, "mlp_dist/__init__.py", "serve/__init__.py"}
    with zipfile.ZipFile(packaged) as archive:
        assert set(archive.namelist()) == settings | code | bundle
        for name in bundle:
            assert archive.read(name) == (trained.bundle / name).read_bytes()
        assert archive.read("handler.py") == (ROOT / "serve/handler.py").read_bytes()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle of an untrained model, and its archive."""
    directory = tmp_path_factory.mktemp("untrained")
    bundle = write_bundle(directory / "bundle")
    return bundle, build_archive(bundle, "mlp", "1", directory)


def with_prefix(mar: Path, place: Path, name: str, prefix: bytes) -> Path:
    """A copy of the archive with `prefix` before one of its files."""
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(place, "w") as new:
        for each in old.namelist():
            new.writestr(each, (prefix if each == name else b"") + old.read(each))
    return place


def test_check_fails_for_a_changed_file_and_another_answer(
    untrained: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, mar = load_bundle(untrained[0]), untrained[1]
    broken = with_prefix(mar, tmp_path / "broken.mar", "weights.pt", b"x")
    with pytest.raises(PackagingError, match=r"(?s)failed its check.*packaged one in weights"):
        check_archive(broken, bundle, tmp_path)
    other = replace(bundle.spec, golden_probabilities=bundle.spec.golden_probabilities[::-1])
    with pytest.raises(PackagingError, match="the trained model gave"):
        check_archive(mar, replace(bundle, spec=other), tmp_path)


def test_check_fails_for_a_missing_dependency(untrained: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, mar = untrained
    worker = "serve/inference/worker.py"
    with_prefix(mar, tmp_path / "changed.mar", worker, b"import accelerate\n")
    shutil.unpack_archive(tmp_path / "changed.mar", tmp_path / "changed", "zip")
    broken = seal(tmp_path / "changed", tmp_path / "broken.mar")
    with pytest.raises(PackagingError, match="import of accelerate halted"):
        check_archive(broken, load_bundle(bundle), tmp_path)


def test_archive_is_reproducible(
    untrained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, mar = untrained
    elsewhere = shutil.copytree(bundle, tmp_path / "bundle")
    for path in elsewhere.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o600)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")
    (tmp_path / "work").mkdir()
    umask = os.umask(0o077)
    try:
        again = build_archive(elsewhere, "mlp", "1", tmp_path / "work")
    finally:
        os.umask(umask)
    assert again.read_bytes() == mar.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run-id", "nope"], "has no run 'nope'"),
        (["--model-name", "../mlp"], r"model-name '\.\./mlp' must be"),
    ],
)
def test_mistake_keeps_the_old_archive(main: Main, flags: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "mlp.mar").write_text("old")
    with pytest.raises(UsageError, match=message):
        main(*flags, "--export-path", str(tmp_path))
    assert (tmp_path / "mlp.mar").read_text() == "old"


def test_changed_weights_are_refused(mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits_run("x", "changed", noise=0, val_accuracy=0.9)
    [stored] = tmp_path.glob("mlruns/*/models/*/artifacts/state_dict.pth")
    state = torch.load(stored, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, stored)
    monkeypatch.setattr(sys, "argv", ["serve.package", "--experiment", "x"])
    with pytest.raises(MlpDistError, match="weights"):
        package.main()
    assert not (tmp_path / "model_store").exists()


def test_invalid_archives(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no .*nope\.mar; package a run first"):
        read_archive(tmp_path / "nope.mar")
    (tmp_path / "half.mar").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(PackagingError, match=r"half\.mar is damaged"):
        read_archive(tmp_path / "half.mar")
    with zipfile.ZipFile(tmp_path / "other.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
    with pytest.raises(PackagingError, match=r"not an archive of python -m serve\.package"):
        read_archive(tmp_path / "other.mar")
