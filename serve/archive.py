"""What a model archive says of itself, read without unpacking it and without torch."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from mlp_dist.core.errors import BundleError, PackagingError, UsageError
from mlp_dist.core.golden import GOLDEN, check_probabilities
from mlp_dist.core.spec import SPEC, BundleSpec
from serve.answering.manifest import MANIFEST

MAR = Path("model_store/mlp.mar")
"""The archive that is made and served where none is named."""


@dataclass(frozen=True)
class Archive:
    """A .mar: `name` and `version` are what TorchServe serves it under, `golden` is an image file."""

    path: Path
    name: str
    version: str
    spec: BundleSpec
    golden: bytes

    def check(self, answer: dict[str, float]) -> None:
        """Raise BundleError unless `answer` is the trained model's to the golden image."""
        check_probabilities(answer, dict(zip(self.spec.classes, self.spec.golden_probabilities, strict=True)))


def read_archive(path: Path) -> Archive:
    """Raises UsageError where there is no such file, PackagingError where it is damaged or not ours."""
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


def model_name(mar: Path) -> str:
    """The name that TorchServe serves any archive under, whatever the file is called."""
    with zipfile.ZipFile(mar) as archive:
        name: str = json.loads(archive.read(MANIFEST))["model"]["modelName"]
        return name
