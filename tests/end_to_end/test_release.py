"""The wheel and the source distribution, and what an installation without a checkout does."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import date
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import mlp_dist
from tests.helpers.checkouts import copy_checkout, tracked_files
from tests.helpers.launching import BIN, ROOT, environment, result, run

NAME = f"mlp_dist-{mlp_dist.__version__}"
GENERATED = ("PKG-INFO", "setup.cfg", "mlp_dist.egg-info/")
LEFT_BEHIND = (
    *("outputs/run/last.pt", ".serve/state.json", "mlruns/1/meta.yaml", "mlflow.db", "key_file.json"),
    *("model_store/mlp.mar", "data/MNIST/raw/x.gz", "build/lib/mlp_dist/old.py", "dist/old.whl"),
    *("mlp_dist/__pycache__/x.pyc", "tests/__pycache__/x.pyc", "launch/__pycache__/x.pyc"),
)
"""Files of a used checkout that must not be released."""


def test_pinned_packages_support_the_oldest_python() -> None:
    required = {each.name: "".join(each.metadata.get_all("Requires-Python", [])) for each in distributions()}
    assert required["mlp_dist"] == ">=3.11"
    assert {name: text for name, text in required.items() if "3.11.0" not in SpecifierSet(text)} == {}


def test_changelog_starts_with_this_version() -> None:
    heading, *_ = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    version, _, when = heading.partition(" - ")
    assert version == mlp_dist.__version__
    assert when == "Unreleased" or date.fromisoformat(when)


def build(directory: Path, *flags: str) -> str:
    """Build into dist; returns the output."""
    env = environment()
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    words = [sys.executable, "-W", "error", "-m", "build", "--no-isolation", "--outdir", "dist", *flags]
    done = subprocess.run(words, cwd=directory, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built beside the source distribution in a used copy of this checkout."""
    checkout = copy_checkout(tmp_path_factory.mktemp("release") / "checkout")
    for name in LEFT_BEHIND:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("left behind")
    output = build(checkout).lower()
    assert "warn" not in output, output
    assert "deprecat" not in output, output
    return checkout / f"dist/{NAME}-py3-none-any.whl"


@pytest.mark.nightly
def test_source_distribution_has_the_tracked_files(wheel: Path) -> None:
    with tarfile.open(wheel.with_name(f"{NAME}.tar.gz")) as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()}
    generated = {name for name in names if name.startswith(GENERATED)}
    assert names - generated == set(tracked_files()) - {"setup.cfg"}


@pytest.mark.nightly
def test_wheel_has_the_packages(wheel: Path, tmp_path: Path) -> None:
    files = contents(wheel)
    names = {name for name in files if ".dist-info/" not in name}
    assert names == {name for name in tracked_files() if name.startswith(("mlp_dist/", "serve/"))}
    assert b"left behind" not in files.values()
    # `build` makes the first wheel from the source distribution; this one comes from the files.
    shutil.copytree(wheel.parents[1], tmp_path / "files", ignore=shutil.ignore_patterns("build", "dist"))
    build(tmp_path / "files", "--wheel")
    assert contents(tmp_path / "files/dist" / wheel.name) == files


class Installation:
    """A virtual environment with the wheel and this environment's packages except the project's own.

    Commands run in `directory`, which is empty at first.
    """

    def __init__(self, place: Path, wheel: Path) -> None:
        self.bin, self.directory = place / "venv/bin", place / "empty"
        self.directory.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
        [site] = (place / "venv/lib").glob("python*/site-packages")
        # A line in a .pth file adds a directory, but not the editable installation that a .pth in it names.
        (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        pip = [sys.executable, "-m", "pip", f"--python={self.bin / 'python'}", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, timeout=60)
        for name in ("accelerate", "torchserve", "torch-model-archiver"):
            _, _, code = (BIN / name).read_text().partition("\n")
            (self.bin / name).write_text(f"#!{self.bin / 'python'}\n{code}")
            (self.bin / name).chmod(0o755)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}{os.pathsep}{os.defpath}"
        unset = ["env", "--unset=PYTHONPATH", "--unset=VIRTUAL_ENV"]
        return run([*unset, *words], self.directory, PATH=path)


@pytest.fixture(scope="module")
def installed(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, shared_ports: None
) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("installed"), wheel)
    yield installation
    installation.run("python", "-m", "serve.server", "stop")


@pytest.mark.nightly
def test_installation_trains_packages_and_serves(installed: Installation) -> None:
    code = "import mlp_dist, serve; print(mlp_dist.__file__, serve.__file__)"
    packages = installed.run("python", "-c", code).stdout.split()
    assert all(path.startswith(str(installed.bin.parent / "lib")) for path in packages)

    flags = ("--dataset", "digits", "--epochs", "3")
    launched = installed.run("accelerate", "launch", "--quiet", "-m", "mlp_dist.train", *flags)
    trained = result(launched)
    assert Path(trained["output_dir"]).is_relative_to(installed.directory)
    assert ".py" not in launched.stdout
    compared = installed.run("python", "-m", "mlp_dist.compare")
    assert trained["run_id"][:8] in compared.stdout, compared.stderr
    promoted = result(installed.run("python", "-m", "mlp_dist.promote", trained["run_id"]))
    assert promoted["version"] == "1"

    assert result(installed.run("python", "-m", "serve.package"))["run_id"] == trained["run_id"]
    started = result(installed.run("python", "-m", "serve.server", "start"))
    golden = Path(trained["output_dir"]) / "bundle/golden.png"
    answer = result(installed.run("python", "-m", "serve.client", str(golden), "--url", started["url"]))
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert result(installed.run("python", "-m", "serve.server", "stop")) == {"stopped": True}


@pytest.mark.nightly
def test_installation_sets_torchserve_up(installed: Installation) -> None:
    shell = 'eval "$(python -m serve.environment)"; echo "$TS_CONFIG_FILE"; echo "$MLFLOW_DISABLE_TELEMETRY"'
    config, telemetry = installed.run("bash", "-c", shell).stdout.splitlines()
    assert Path(config).is_relative_to(installed.bin.parent)
    assert "disable_token_authorization=false" in Path(config).read_text()
    assert telemetry == "true"
