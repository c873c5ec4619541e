"""Package a run as a checked model archive for TorchServe.

  python -m serve.package                         the champion, else the best
  python -m serve.package --metric val_accuracy   the best run
  python -m serve.package --model-name digits     under another name

The last line on stdout is one JSON object: mar, run_id, version, sha256, test_accuracy, test_ece
and temperature.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlp_dist
from mlp_dist.console import command, progress
from mlp_dist.core.errors import BundleError, PackagingError, UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import GOLDEN, SPEC, WEIGHTS, check_probabilities
from mlp_dist.tracking import champion, find, next_steps
from serve.archive import MAR
from serve.inference.checksums import MANIFEST, SUMS

if TYPE_CHECKING:
    from mlp_dist.core.bundle import Bundle
    from mlp_dist.data.scores import Evaluation

HERE = Path(__file__).resolve().parent
HANDLER, CONFIG = "handler.py", "model-config.yaml"

_UNIX = 3
"""Zip's code for Unix permissions."""


def build_archive(bundle_directory: Path, model_name: str, version: str, directory: Path) -> Path:
    """Write `directory`/`model_name`.mar: the handler, serve/inference, mlp_dist/core, the bundle's files."""
    files = {name: bundle_directory / name for name in (WEIGHTS, SPEC, GOLDEN)}
    files |= {name: HERE / name for name in (HANDLER, CONFIG)}
    for code in (Path(mlp_dist.__file__).parent / "core", HERE / "inference"):
        for path in (code.with_name("__init__.py"), *code.rglob("*.py")):
            files[path.relative_to(code.parents[1]).as_posix()] = path
    mar = directory / f"{model_name}.mar"
    model = {"modelName": model_name, "modelVersion": version, "handler": HANDLER}
    model |= {"serializedFile": WEIGHTS, "configFile": CONFIG}
    write_archive(mar, {name: path.read_bytes() for name, path in files.items()}, model)
    return mar


def write_archive(mar: Path, files: Mapping[str, bytes], model: Mapping[str, str]) -> None:
    """Write an archive as torch-model-archiver does, reproducibly and with sha256 sums in the manifest."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": dict(model), SUMS: sums}
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    # Stored: weights hardly compress, and the bytes would depend on the version of zlib.
    with zipfile.ZipFile(mar, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted({**files, MANIFEST: text.encode()}.items()):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = _UNIX, 0o644 << 16
            archive.writestr(entry, content)


def check_archive(mar: Path, bundle: "Bundle", directory: Path) -> None:
    """Unpack the archive and ask it about the golden image, in a process with only what a server needs.

    Raises PackagingError unless it gives the trained model's answer.
    """
    unpacked = directory / "unpacked"
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(unpacked)
    words = [sys.executable, "-I", str(HERE / "verify.py"), str(unpacked)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PackagingError(f"the archive failed its check:\n{end}")
    golden = dict(zip(bundle.spec.classes, bundle.spec.golden_probabilities, strict=True))
    try:
        check_probabilities(json.loads(done.stdout.splitlines()[-1]), golden)
    except BundleError as error:
        raise PackagingError(f"the archive failed its check: {error}") from error


def package(
    run: find.StoredRun, model_name: str, export_path: Path, data_dir: Path | None
) -> dict[str, object]:
    """Export, build and check before replacing an older archive; returns the JSON of the last line."""
    with tempfile.TemporaryDirectory(prefix="mlp-package-") as name, progress.stages("packaging") as begin:
        directory = Path(name)
        begin("scoring the test images")
        # Imports torch, which takes seconds.
        from mlp_dist.tracking import export

        exported = export.export_run(run, directory / "run", data_dir)
        test = exported.test
        progress.tell(_summary(test))
        begin("building the archive")
        # One version per run: two archives of one run hold the same model.
        version = run.run_id[:8]
        mar = build_archive(exported.directory, model_name, version, directory)
        begin("checking its answer")
        check_archive(mar, exported.bundle, directory)
        place = export_path / mar.name
        try:
            with replacing_file(place) as temporary:
                shutil.copyfile(mar, temporary)
        except OSError as error:
            message = f"cannot write {place} ({error.strerror}); choose another --export-path"
            raise PackagingError(message) from error
        return {
            "mar": str(place),
            "run_id": run.run_id,
            "version": version,
            "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
            "test_accuracy": test.accuracy,
            "test_ece": test.ece,
            "temperature": test.temperature,
        }


def _summary(test: "Evaluation") -> str:
    text = f"test accuracy {test.accuracy:.2%}, expected calibration error {test.ece:.2%}"
    if test.temperature == 1:
        return f"{text}, not calibrated: there were no validation images to fit a temperature"
    return f"{text} at temperature {test.temperature:.3f}, {test.uncalibrated_ece:.2%} without"


def _parse() -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m serve.package", usage="python -m serve.package [FLAG ...]", description=__doc__
    )
    run = parser.add_argument_group("run (the champion, else the best by val_accuracy)")
    run.add_argument("--run-id", metavar="ID", help="run by ID, ID prefix or name")
    run.add_argument(
        "--experiment", metavar="NAME", help="best run of the experiment (of the latest run's data set)"
    )
    run.add_argument("--metric", metavar="NAME", help="best run by val_accuracy (default) or val_loss")
    run.add_argument("--data-dir", metavar="DIR", type=Path, help="directory of the test images (the run's)")
    archive = parser.add_argument_group("archive")
    archive.add_argument("--model-name", metavar="NAME", default=MAR.stem, help=f"({MAR.stem})")
    archive.add_argument(
        "--export-path", metavar="DIR", type=Path, default=MAR.parent, help=f"({MAR.parent})"
    )
    return parser.parse_args()


def main() -> None:
    args = _parse()
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", args.model_name):
        raise UsageError(f"model-name {args.model_name!r} must be letters, digits, '-', '_' and '.'")
    with progress.stages("choosing the run"):
        run = find.find_run(args.run_id) if args.run_id else champion.chosen_run(args.experiment, args.metric)
    print(f"packaging run {run.name} ({run.run_id}), trained on {run.dataset}", flush=True)
    result = package(run, args.model_name, args.export_path, args.data_dir)
    print(next_steps.after_packaging(Path(str(result["mar"])), MAR))
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
