"""The servers of benchmarks.serving and their archives."""

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from benchmarks import run
from mlp_dist.core.spec import SPEC, WEIGHTS
from mlp_dist.data.datasets import default_data_dir
from serve.inference.checksums import MANIFEST
from serve.package import seal
from serve.server import running

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
    """Train the default recipe for one epoch and package it. Raises TrainingError if a command fails."""
    data = str(default_data_dir().absolute())
    words = [sys.executable, "-m", "mlp_dist.cli.train", "--epochs", "1"]
    trained = json.loads(run(words, directory, MLP_DIST_DATA=data)[-1])
    words = [sys.executable, "-m", "serve.package", "--run-id", trained["run_id"]]
    packaged = json.loads(run(words, directory)[-1])
    return unpack(directory / packaged["mar"], directory / "unpacked", trained["dataset"])


def unpack(mar: Path, directory: Path, dataset: str) -> Packaged:
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(directory)
    return Packaged(mar, directory, dataset)


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
