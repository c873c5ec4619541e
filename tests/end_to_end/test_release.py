"""What is released: the wheel, the source distribution, and what they do where no checkout is."""

import email
import email.message
import json
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
from tests.helpers.launching import BIN, ROOT, environment, result, run

pytestmark = pytest.mark.slow

NAME = f"mlp_dist-{mlp_dist.__version__}"
GENERATED = ("PKG-INFO", "setup.cfg", "mlp_dist.egg-info/")
LEFT_BEHIND = (
    *("outputs/run/last.pt", ".serve/state.json", "mlruns/1/meta.yaml", "mlflow.db", "key_file.json"),
    *("model_store/mlp.mar", "data/MNIST/raw/x.gz", "build/lib/mlp_dist/old.py", "dist/old.whl"),
    *("mlp_dist/__pycache__/x.pyc", "tests/__pycache__/x.pyc", "launch/__pycache__/x.pyc"),
)
"""What a checkout in use holds beside its files."""


def test_what_is_pinned_installs_on_the_oldest_python_that_is_promised() -> None:
    wanted = {each.name: "".join(each.metadata.get_all("Requires-Python", [])) for each in distributions()}
    assert wanted["mlp_dist"] == ">=3.11"
    assert {name: text for name, text in wanted.items() if "3.11.0" not in SpecifierSet(text)} == {}


def tracked() -> list[str]:
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if os.path.lexists(ROOT / name)]


def build(directory: Path, *flags: str) -> str:
    """Returns what was said."""
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
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this one in which people have worked; its distributions are in dist."""
    directory = tmp_path_factory.mktemp("release") / "checkout"
    for name in tracked():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)
    for name in LEFT_BEHIND:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("left behind")
    said = build(directory)
    assert "warn" not in said.lower(), said
    assert "deprecat" not in said.lower(), said
    return directory


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return checkout / f"dist/{NAME}-py3-none-any.whl"


def test_the_source_distribution_holds_what_the_repository_does(checkout: Path) -> None:
    with tarfile.open(checkout / f"dist/{NAME}.tar.gz") as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    assert all(member.isfile() for member in members)
    names = {member.name.removeprefix(f"{NAME}/") for member in members}
    expected = {name for name in tracked() if not (ROOT / name).is_symlink()}
    expected |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "mlp_dist/launch").glob("*/*") if path.is_file()
    }
    made = {name for name in names if name.startswith(GENERATED)}
    assert names - made == expected - {"setup.cfg"}


def test_the_wheel_is_the_same_from_either(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    # `build` makes the wheel of the source distribution; this one is of the files.
    directory = tmp_path / "files"
    shutil.copytree(checkout, directory, symlinks=True, ignore=shutil.ignore_patterns("build", "dist"))
    build(directory, "--wheel")
    assert contents(directory / "dist" / wheel.name) == contents(wheel)


def test_the_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    files = contents(wheel)
    names = {name for name in files if ".dist-info/" not in name}
    packages = {name for name in tracked() if name.startswith(("mlp_dist/", "serve/"))}
    links = {name for name in packages if (ROOT / name).is_symlink()}
    data = {f"{link}/{path.name}" for link in links for path in (ROOT / link).iterdir() if path.is_file()}
    assert names == packages - links | data
    assert files["mlp_dist/launch/configs/cpu.yaml"] == (ROOT / "launch/configs/cpu.yaml").read_bytes()
    assert b"left behind" not in files.values()


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    return email.message_from_bytes(contents(wheel)[f"{NAME}.dist-info/METADATA"])


def test_the_metadata_says_what_it_is(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "mlp_dist"
    assert metadata["Version"] == mlp_dist.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.decode().strip() == (ROOT / "README.md").read_text().strip()
    assert {"bench", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert metadata.get_all("Project-URL", []) + metadata.get_all("Home-page", []) == []
    assert "Programming Language :: Python :: 3.11" in metadata.get_all("Classifier", [])


def test_the_changelog_has_a_heading_for_this_version() -> None:
    heading, *_ = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    version, _, when = heading.partition(" - ")
    assert version == mlp_dist.__version__
    assert when == "Unreleased" or date.fromisoformat(when)


class Installation:
    """A virtual environment with the wheel, and this one's packages but for the project's own; `directory` is
    an empty one beside it.
    """

    def __init__(self, place: Path, wheel: Path) -> None:
        self.bin, self.directory = place / "venv/bin", place / "empty"
        self.directory.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
        [site] = (place / "venv/lib").glob("python*/site-packages")
        # As a line it adds the directory, but not the editable installation that a .pth file in there names.
        (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        pip = [sys.executable, "-m", "pip", f"--python={self.bin / 'python'}", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, timeout=60)
        for name in ("accelerate", "torchserve", "torch-model-archiver"):
            _, _, code = (BIN / name).read_text().partition("\n")
            (self.bin / name).write_text(f"#!{self.bin / 'python'}\n{code}")
            (self.bin / name).chmod(0o755)

    def run(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}{os.pathsep}{os.defpath}"
        return run(
            ["env", "--unset=PYTHONPATH", "--unset=VIRTUAL_ENV", *words],
            self.directory,
            **{"PATH": path, **changes},
        )


@pytest.fixture(scope="module")
def installed(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, shared_ports: None
) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("installed"), wheel)
    yield installation
    installation.run("python", "-m", "serve.server", "stop")


@pytest.fixture(scope="module")
def trained(installed: Installation) -> dict[str, object]:
    flags = ("--dataset", "digits", "--epochs", "3")
    return result(installed.run("accelerate", "launch", "--quiet", "-m", "mlp_dist.cli.train", *flags))


def test_nothing_of_the_checkout_is_used(installed: Installation) -> None:
    code = "import sys, mlp_dist, serve; print(mlp_dist.__file__, serve.__file__, *sys.path)"
    package, service, *path = installed.run("python", "-c", code).stdout.split()
    site = str(installed.bin.parent / "lib")
    assert package.startswith(site)
    assert service.startswith(site)
    assert str(ROOT) not in path


def test_an_installation_trains_compares_and_promotes(
    installed: Installation, trained: dict[str, object]
) -> None:
    assert Path(str(trained["output_dir"])).is_relative_to(installed.directory)
    page = installed.run("python", "-m", "mlp_dist.cli.compare", "--html", "page.html")
    assert str(trained["run_id"])[:8] in page.stdout, page.stderr
    assert "<html" in (installed.directory / "page.html").read_text()
    promoted = result(installed.run("python", "-m", "mlp_dist.cli.promote", str(trained["run_id"])))
    assert promoted["version"] == "1"


def test_an_installation_packages_serves_and_answers(
    installed: Installation, trained: dict[str, object]
) -> None:
    assert result(installed.run("python", "-m", "serve.package"))["run_id"] == trained["run_id"]
    started = result(installed.run("python", "-m", "serve.server", "start"))
    golden = Path(str(trained["output_dir"])) / "bundle/golden.png"
    answer = result(installed.run("python", "-m", "serve.client", str(golden), "--url", started["url"]))
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert result(installed.run("python", "-m", "serve.server", "stop")) == {"stopped": True}


def test_a_shell_of_an_installation_is_told_torchserves_settings(installed: Installation) -> None:
    shell = 'eval "$(python -m serve.environment)"; echo "$TS_CONFIG_FILE"; echo "$MLFLOW_DISABLE_TELEMETRY"'
    config, telemetry = installed.run("bash", "-c", shell).stdout.splitlines()
    assert Path(config).is_relative_to(installed.bin.parent)
    assert "disable_token_authorization=false" in Path(config).read_text()
    assert telemetry == "true"


def test_the_templates_of_an_installation_name_its_commands(installed: Installation) -> None:
    done = installed.run("python", "-m", "mlp_dist.cli.templates")
    written = [installed.directory / line for line in done.stdout.splitlines()]
    originals = [path for path in (ROOT / "mlp_dist/launch").glob("*/*") if path.is_file()]
    assert {path.name for path in written} == {path.name for path in originals}
    assert all("launch/train.py" not in path.read_text() for path in written)
    launching = ("accelerate", "launch", "--quiet", "--config_file", "launch/configs/cpu.yaml")
    recipes = installed.run(*launching, "-m", "mlp_dist.cli.train", "--list-recipes", OMP_NUM_THREADS="1")
    assert "mnist-best" in recipes.stdout, recipes.stderr
    flags = ("--trials", "1", "--workers", "1")
    swept = installed.run("python", "-m", "mlp_dist.cli.sweep", "launch/sweeps/digits.toml", *flags)
    assert "to train the best again: accelerate launch -m mlp_dist.train --recipe" in swept.stdout, (
        swept.stderr
    )
    assert json.loads(swept.stdout.splitlines()[-1])["best_value"] > 0.5
    again = installed.run("python", "-m", "mlp_dist.cli.templates")
    assert again.returncode == 2
    assert "launch/configs/bf16.yaml, " in again.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("mlp_dist.cli.train", "--help"), "accelerate launch -m mlp_dist.train"),
        (("mlp_dist.cli.sweep",), "python -m mlp_dist.sweep SPACE.toml"),
    ],
)
def test_hints_of_an_installation_name_what_is_there(
    installed: Installation, words: tuple[str, ...], told: str
) -> None:
    done = installed.run("python", "-m", *words)
    assert told in done.stdout + done.stderr
    assert ".py" not in done.stdout + done.stderr
