"""The archives of benchmarks/serving.py: a model trained for it, and the same with other handlers."""

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mlp_dist.core.errors import ServerError
from mlp_dist.core.spec import SPEC, WEIGHTS
from mlp_dist.data.datasets import default_data_dir
from serve.answering.manifest import MANIFEST
from serve.package import seal

_ROOT = Path(__file__).resolve().parents[1]
_HANDLERS = Path(__file__).with_name("rivals")
CONFIG = "model-config.yaml"


@dataclass(frozen=True)
class Packaged:
    """A run's archive, and the directory of what is in it."""

    mar: Path
    bundle: Path
    dataset: str


def unpack(mar: Path, directory: Path, dataset: str) -> Packaged:
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(directory)
    return Packaged(mar, directory, dataset)


def train(directory: Path) -> Packaged:
    """The default recipe for an epoch, packaged; on scikit-learn's digits where MNIST cannot be had.

    Raises ServerError where a command fails.
    """
    trained = _result_of(directory, str(_ROOT / "launch/train.py"), "--epochs", "1")
    packaged = _result_of(directory, "-m", "serve.package", "--run-id", trained["run_id"])
    return unpack(directory / packaged["mar"], directory / "unpacked", trained["dataset"])


def _result_of(directory: Path, *arguments: str) -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db",
        "MLP_DIST_DATA": str(default_data_dir().absolute()),
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise ServerError(f"{' '.join(arguments[:2])} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def unbatched(packaged: Packaged, place: Path) -> Path:
    """The archive with a batch size of 1."""
    with zipfile.ZipFile(packaged.mar) as archive:
        config = yaml.safe_load(archive.read(CONFIG))
    return _changed(packaged.mar, place, {CONFIG: yaml.safe_dump({**config, "batchSize": 1}).encode()})


def ceiling(packaged: Packaged, place: Path, body: bytes, headers: dict[str, str]) -> Path:
    """The archive with a handler that answers `body` and `headers` and does nothing."""
    files = {
        "handler.py": (_HANDLERS / "ceiling.py").read_bytes(),
        "answer.json": body,
        "headers.json": json.dumps(headers).encode(),
    }
    return _changed(packaged.mar, place, files)


def stock(packaged: Packaged, place: Path) -> Path:
    """The archive with TorchServe's image_classifier, and the model as that loads it."""
    weights = torch.load(packaged.bundle / WEIGHTS, weights_only=True)
    file = io.BytesIO()
    torch.save({f"model.{name}": each for name, each in weights.items()}, file)
    classes = json.loads((packaged.bundle / SPEC).read_text())["classes"]
    files = {
        "handler.py": (_HANDLERS / "stock.py").read_bytes(),
        "stock_model.py": (_HANDLERS / "stock_model.py").read_bytes(),
        WEIGHTS: file.getvalue(),
        "index_to_name.json": json.dumps({str(i): name for i, name in enumerate(classes)}).encode(),
    }
    return _changed(packaged.mar, place, files, modelFile="stock_model.py")


def _changed(mar: Path, place: Path, files: dict[str, bytes], **manifest: str) -> Path:
    """A copy of an archive with `files` added or in place of its own, its manifest changed likewise."""
    place.parent.mkdir()
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(place, "w") as new:
        kept = {name: old.read(name) for name in old.namelist()} | files
        values = json.loads(kept[MANIFEST])
        values["model"] |= manifest
        kept[MANIFEST] = json.dumps(values).encode()
        for name, content in kept.items():
            new.writestr(name, content)
    seal(place)
    return place
