"""The servers of benchmarks.serving and their archives."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from mlp_dist.core.errors import ServerError
from mlp_dist.core.spec import SPEC, WEIGHTS
from mlp_dist.data.datasets import default_data_dir
from serve.inference.checksums import MANIFEST
from serve.package import seal
from serve.server import running

_ROOT = Path(__file__).resolve().parents[1]
_RIVALS = Path(__file__).with_name("rivals")
PATH = "/predictions/mlp"


@dataclass(frozen=True)
class Packaged:
    """A run's archive, and the directory with its unpacked files."""

    mar: Path
    bundle: Path
    dataset: str


@dataclass(frozen=True)
class Served:
    """A server that answers; `process` is the parent of all its processes."""

    port: int
    process: psutil.Process
    headers: dict[str, str] = field(default_factory=dict)

    def request(self, image: bytes) -> bytes:
        """A whole HTTP request for one image."""
        fields = {"Host": "127.0.0.1", "Content-Type": "application/octet-stream"} | self.headers
        fields["Content-Length"] = str(len(image))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + image

    def cpu(self) -> float:
        """CPU seconds used so far by all processes."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(times.user + times.system for times in (each.cpu_times() for each in processes))


def train(directory: Path) -> Packaged:
    """Train the default recipe for one epoch and package it. Raises ServerError if a command fails."""
    trained = _run_json(directory, "-m", "mlp_dist.cli.train", "--epochs", "1")
    packaged = _run_json(directory, "-m", "serve.package", "--run-id", trained["run_id"])
    return unpack(directory / packaged["mar"], directory / "unpacked", trained["dataset"])


def unpack(mar: Path, directory: Path, dataset: str) -> Packaged:
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(directory)
    return Packaged(mar, directory, dataset)


def _run_json(directory: Path, *arguments: str) -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db",
        "MLP_DIST_DATA": str(default_data_dir().absolute()),
    }
    words = [sys.executable, *arguments]
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise ServerError(f"{' '.join(arguments[:2])} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def classifier(packaged: Packaged, directory: Path) -> Path:
    """An archive with TorchServe's image_classifier and the model as that handler loads it."""
    weights = io.BytesIO()
    loaded = torch.load(packaged.bundle / WEIGHTS, weights_only=True)
    torch.save({f"model.{key}": tensor for key, tensor in loaded.items()}, weights)
    classes = json.loads((packaged.bundle / SPEC).read_text())["classes"]
    shutil.copytree(packaged.bundle, directory)
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["model"]["modelFile"] = "classifier_model.py"
    changed = {
        "handler.py": (_RIVALS / "classifier.py").read_bytes(),
        "classifier_model.py": (_RIVALS / "classifier_model.py").read_bytes(),
        WEIGHTS: weights.getvalue(),
        "index_to_name.json": json.dumps({str(i): label for i, label in enumerate(classes)}).encode(),
        MANIFEST: json.dumps(manifest).encode(),
    }
    for name, content in changed.items():
        (directory / name).write_bytes(content)
    return seal(directory, directory / "mlp.mar")


@contextmanager
def torchserve(mar: Path, golden: bytes) -> Iterator[Served]:
    before = set(psutil.Process().children())
    with running(mar, golden) as client:
        (process,) = set(psutil.Process().children()) - before
        assert client.key_file is not None
        key = json.loads(client.key_file.read_text())["inference"]["key"]
        port = int(client.url.rpartition(":")[2])
        yield Served(port, process, {"Authorization": f"Bearer {key}"})
