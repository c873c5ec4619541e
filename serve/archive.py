"""Reads a model archive's metadata, without unpacking it and without torch."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from mlp_dist.core.errors import BundleError, PackagingError, UsageError
from mlp_dist.core.spec import GOLDEN, SPEC, BundleSpec, check_probabilities
from serve.inference.checksums import MANIFEST

MAR = Path("model_store/mlp.mar")
"""The default archive to package and serve."""


@dataclass(frozen=True)
class Archive:
    """A .mar. TorchServe serves it as `name` and `version`; `golden` is the golden image's file."""

    path: Path
    name: str
    version: str
    spec: BundleSpec
    golden: bytes

    def check(self, answer: dict[str, float]) -> None:
        """Raise BundleError unless `answer` is the trained model's answer to the golden image."""
        check_probabilities(answer, dict(zip(self.spec.classes, self.spec.golden_probabilities, strict=True)))

    def snapshot(self, **changed: int) -> str:
        """TorchServe's setting `model_snapshot`: `changed` override the archive's own settings."""
        import yaml

        with zipfile.ZipFile(self.path) as archive:
            own = yaml.safe_load(archive.read("model-config.yaml"))
        model = {**own, **changed, "marName": f"{self.name}.mar", "defaultVersion": True}
        return json.dumps({"name": "start", "modelCount": 1, "models": {self.name: {self.version: model}}})


def read_archive(path: Path) -> Archive:
    """Raises UsageError for a missing file and PackagingError for a damaged or foreign archive."""
    if not path.is_file():
        raise UsageError(f"there is no {path}; package a run first: python -m serve.package")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise PackagingError(f"{path} is damaged: {damaged} in it was changed; package it again")
            model = json.loads(archive.read(MANIFEST))["model"]
            spec = BundleSpec.from_json(json.loads(archive.read(SPEC)))
            return Archive(path, model["modelName"], model["modelVersion"], spec, archive.read(GOLDEN))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise PackagingError(f"{path} is damaged: {error}; package it again") from error
    except (KeyError, TypeError, ValueError, BundleError) as error:
        raise PackagingError(f"{path} is not an archive of python -m serve.package: {error}") from error
