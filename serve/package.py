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
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import mlp_dist
from mlp_dist.console import command, progress
from mlp_dist.core.errors import BundleError, PackagingError, UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import GOLDEN, SPEC, WEIGHTS, check_probabilities
from mlp_dist.tracking import champion, find, next_steps
from serve.archive import MAR
from serve.inference.checksums import MANIFEST, SUMS, sha256_sums

if TYPE_CHECKING:
    from mlp_dist.core.bundle import Bundle
    from mlp_dist.data.scores import Evaluation

HERE = Path(__file__).resolve().parent

_UNIX = 3
"""Zip's code for Unix permissions."""


def build_archive(bundle_directory: Path, model_name: str, version: str, directory: Path) -> Path:
    """Build `directory`/`model_name`.mar with torch-model-archiver.

    It holds the handler and its settings, serve/inference, mlp_dist/core, and the bundle's files.
    """
    extra, built, temporary = (directory / name for name in ("extra", "built", "temporary"))
    for code in (Path(mlp_dist.__file__).parent / "core", HERE / "inference"):
        place = extra / code.parent.name
        shutil.copytree(code, place / code.name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(code.with_name("__init__.py"), place)
    for name in (SPEC, GOLDEN):
        shutil.copy(bundle_directory / name, extra)
    flags = {"model-name": model_name, "version": version, "handler": HERE / "handler.py"}
    flags |= {"serialized-file": bundle_directory / WEIGHTS, "config-file": HERE / "model-config.yaml"}
    flags |= {"extra-files": extra, "export-path": built, "archive-format": "no-archive"}
    # The archiver replaces $TMPDIR/MODEL_NAME, whoever it belongs to.
    for path in (built, temporary):
        path.mkdir()
    words = [f"--{name}={value}" for name, value in flags.items()]
    _run([sys.executable, "-m", "model_archiver.model_packaging", *words], TMPDIR=str(temporary))
    return seal(built / model_name, directory / f"{model_name}.mar")


def seal(directory: Path, mar: Path) -> Path:
    """Write the archiver's files to `mar` reproducibly, with their sha256 in the manifest."""
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest.pop("createdOn", None)
    sums = sha256_sums(directory)
    text = json.dumps({**manifest, SUMS: sums}, indent=2, sort_keys=True) + "\n"
    # Stored: weights hardly compress, and the bytes would depend on the version of zlib.
    with zipfile.ZipFile(mar, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted({*sums, MANIFEST}):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = _UNIX, 0o644 << 16
            archive.writestr(entry, text if name == MANIFEST else (directory / name).read_bytes())
    return mar


def check_archive(mar: Path, bundle: "Bundle", directory: Path) -> None:
    """Unpack the archive and ask it about the golden image, in a process with only what a server needs.

    Raises PackagingError unless it gives the trained model's answer.
    """
    unpacked = directory / "unpacked"
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(unpacked)
    output = _run([sys.executable, "-I", str(HERE / "verify.py"), str(unpacked)])
    golden = dict(zip(bundle.spec.classes, bundle.spec.golden_probabilities, strict=True))
    try:
        check_probabilities(json.loads(output.splitlines()[-1]), golden)
    except BundleError as error:
        raise PackagingError(f"the archive failed its check: {error}") from error


def _run(words: list[str], **environment: str) -> str:
    """Run a command; returns its stdout. Raises PackagingError with the end of its output."""
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PackagingError(f"the archive failed its check:\n{end}")
    return done.stdout


def package(
    run: find.StoredRun, model_name: str, export_path: Path, data_dir: Path | None
) -> dict[str, object]:
    """Export, build and check before replacing an older archive; returns the JSON of the last line."""
    with tempfile.TemporaryDirectory(prefix="mlp-package-") as name, progress.stages("packaging") as begin:
        directory = Path(name)
        begin("scoring the test images")
        exported = find.export_run(run, directory / "run", data_dir)
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
