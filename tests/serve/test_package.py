import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import PackagingError
from serve.inference.checksums import MANIFEST
from serve.package import build_archive, check_archive, seal
from tests.helpers.asking import write_bundle
from tests.helpers.launching import ROOT, Trained, run

pytestmark = pytest.mark.slow


def package(trained: Trained, *flags: str, export_path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "serve.package", *flags, "--export-path", str(export_path)]
    return run(words, trained.directory)


def test_the_last_line(packaged: Path, packaged_result: dict[str, object], trained: Trained) -> None:
    names = {"mar", "run_id", "version", "sha256", "test_accuracy", "test_ece", "temperature"}
    assert set(packaged_result) == names
    for name in ("test_ece", "temperature"):
        assert packaged_result[name] == trained.result[name]
    assert packaged_result["run_id"] == trained.result["run_id"]
    assert packaged_result["test_accuracy"] == trained.result["test_accuracy"]
    assert packaged_result["sha256"] == hashlib.sha256(packaged.read_bytes()).hexdigest()
    with zipfile.ZipFile(packaged) as archive:
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
    assert manifest["model"]["modelVersion"] == packaged_result["version"]


def test_what_is_inside(packaged: Path, trained: Trained) -> None:
    packages = ("mlp_dist/core", "serve/answering")
    code = {str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).glob("*.py")}
    bundle = {"weights.pt", "bundle.json", "golden.png"}
    with zipfile.ZipFile(packaged) as archive:
        assert set(archive.namelist()) == {
            *("handler.py", "model-config.yaml", "MAR-INF/MANIFEST.json"),
            *("mlp_dist/__init__.py", "serve/__init__.py"),
            *code,
            *bundle,
        }
        for name in bundle:
            assert archive.read(name) == (trained.bundle / name).read_bytes()
        assert archive.read("handler.py") == (ROOT / "serve/handler.py").read_bytes()


def test_it_answers_where_nothing_of_training_can_be_imported(packaged: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packaged) as archive:
        archive.extractall(tmp_path)
        spec = json.loads(archive.read("bundle.json"))
    check = (
        "import sys; sys.path.insert(0, {serve!r}); import verify; from pathlib import Path\n"
        "verify.main(Path({directory!r}))\n"
        "for name in 'mlflow accelerate matplotlib sklearn tqdm model_archiver launch'.split():\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ModuleNotFoundError:\n"
        "        continue\n"
        "    raise SystemExit(name + ' can be imported')\n"
        "assert 'accelerate' not in sys.modules\n"
    ).format(serve=str(ROOT / "serve"), directory=str(tmp_path))
    done = run([sys.executable, "-I", "-c", check], tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert list(answer.values()) == pytest.approx(spec["golden_probabilities"], abs=1e-6)


def rewritten(mar: Path, place: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """A copy of the archive whose files were changed, but for the manifest."""
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(place, "w") as new:
        files = {name: old.read(name) for name in old.namelist()}
        change(files)
        for name, data in files.items():
            new.writestr(name, data)
    return place


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle of a model that was not trained, and its archive."""
    directory = tmp_path_factory.mktemp("untrained")
    bundle = write_bundle(directory / "bundle")
    return bundle, build_archive(bundle, "mlp", "1", directory)


DAMAGE: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "weights": (
        lambda files: files.update({"weights.pt": files["weights.pt"][:-1000]}),
        "weights.pt was changed",
    ),
    "golden": (lambda files: files.update({"golden.png": b"none"}), "golden.png was changed"),
    "settings": (lambda files: files.update({"model-config.yaml": b""}), "model-config.yaml was changed"),
    "handler": (
        lambda files: files.update({"handler.py": files["handler.py"] + b"\n"}),
        "handler.py was changed",
    ),
    "core": (lambda files: files.pop("mlp_dist/core/images.py"), "mlp_dist/core/images.py was missing"),
    "another": (lambda files: files.update({"a.py": b"", "b/c.py": b""}), "a.py, b/c.py were added"),
    "compiled": (
        lambda files: files.update({"mlp_dist/core/__pycache__/images.cpython-311.pyc": b""}),
        "mlp_dist/core/__pycache__/images.cpython-311.pyc was added",
    ),
    "sums": (
        lambda files: files.update({MANIFEST: files[MANIFEST].replace(b'"sha256"', b'"sha255"')}),
        "has no sha256 of the archive's files",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_archive_that_was_changed_is_refused(
    damage: str, untrained: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, mar = untrained
    change, message = DAMAGE[damage]
    broken = rewritten(mar, tmp_path / "broken.mar", change)
    with pytest.raises(PackagingError, match=f"the archive was not put in place(.|\n)*{message}"):
        check_archive(broken, load_bundle(bundle), tmp_path)


def test_an_archive_that_needs_more_than_what_serves_is_refused(
    untrained: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, mar = untrained
    name = "serve/answering/worker.py"
    broken = rewritten(
        mar, tmp_path / "broken.mar", lambda files: files.update({name: b"import accelerate\n" + files[name]})
    )
    seal(broken)
    with pytest.raises(PackagingError, match="No module named 'accelerate'"):
        check_archive(broken, load_bundle(bundle), tmp_path)


def test_the_same_bundle_gives_the_same_bytes(
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


def test_another_models_answer_is_refused(trained: Trained, tmp_path: Path) -> None:
    bundle = load_bundle(trained.bundle)
    (tmp_path / "work").mkdir()
    mar = build_archive(trained.bundle, "mlp", "1", tmp_path / "work")
    probabilities = (1.0,) + (0.0,) * 9
    other = type(bundle)(
        type(bundle.spec)(**{**vars(bundle.spec), "golden_probabilities": probabilities}),
        bundle.model,
        bundle.golden_image,
    )
    with pytest.raises(PackagingError, match="the trained model gave"):
        check_archive(mar, other, tmp_path)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--experiment", "nope"], 2, "has no experiment 'nope' (there are: Default, mlp_dist)"),
        (["--metric", "test_accuracy"], 2, "cannot be chosen by 'test_accuracy'"),
        (["--run-id", "nope"], 2, "has no run 'nope'"),
        (["--model-name", "../mlp"], 2, "model-name '../mlp' must be"),
        (["--metrics", "x"], 2, "did you mean --metric?"),
        (["--data-dir", "/nowhere", "--run-id", "RUN"], 1, "could not be had"),
    ],
)
def test_a_mistake_leaves_the_archive_that_was_there(
    flags: list[str], code: int, message: str, trained: Trained, tmp_path: Path
) -> None:
    if "RUN" in flags and trained.result["dataset"] == "digits":
        pytest.skip("the bundled digits are never missing; needs MNIST: set MLP_DIST_DATA")
    (tmp_path / "mlp.mar").write_text("what was there")
    flags = [trained.result["run_id"] if flag == "RUN" else flag for flag in flags]
    done = package(trained, *flags, export_path=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mlp.mar"]
    assert (tmp_path / "mlp.mar").read_text() == "what was there"


def test_a_place_that_cannot_be_written_is_named(trained: Trained) -> None:
    done = package(trained, export_path=Path("/proc/x"))
    assert done.returncode == 1
    told = "/proc/x/mlp.mar cannot be written (No such file or directory); choose another --export-path"
    assert f"error: {told}\n" in done.stderr


@pytest.mark.parametrize("damage", ["weights.pt", "test_accuracy"])
def test_a_bundle_changed_in_the_store_is_refused(damage: str, trained: Trained, tmp_path: Path) -> None:
    # MLflow's store holds absolute paths, so the artifacts are changed where they lie, and put back.
    [stored] = trained.directory.glob(f"mlruns/*/{trained.result['run_id']}/artifacts/bundle")
    shutil.copytree(stored, tmp_path / "kept")
    try:
        if damage == "weights.pt":
            state = torch.load(stored / damage, weights_only=True)
            torch.save({name: tensor + 1 for name, tensor in state.items()}, stored / damage)
            message = "the weights were changed or damaged"
        else:
            spec = json.loads((stored / "bundle.json").read_text())
            spec["metrics"]["test_accuracy"] = 0.5
            (stored / "bundle.json").write_text(json.dumps(spec))
            message = "reports a test accuracy of 0.5, but its bundle scores"
        done = package(trained, export_path=tmp_path / "model_store")
        assert done.returncode == 1
        assert message in done.stderr
        assert not (tmp_path / "model_store").exists()
    finally:
        shutil.copytree(tmp_path / "kept", stored, dirs_exist_ok=True)
