"""A run -> a checked model archive for TorchServe.

  python -m serve.package                         the champion, which mlp_dist.promote names;
                                                  where there is none, the best run
  python -m serve.package --metric val_accuracy   the best run, champion or not
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
from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.console import command, progress
from mlp_dist.core.errors import BundleError, PackagingError, UsageError
from mlp_dist.core.golden import GOLDEN, check_probabilities
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import SPEC, WEIGHTS
from mlp_dist.tracking import find, next_steps, registry
from serve.answering.manifest import MANIFEST, SUMS, sha256_sums
from serve.archive import MAR

if TYPE_CHECKING:
    from mlp_dist.core.bundle import Bundle
    from mlp_dist.data.evaluate import Evaluation

HERE = Path(__file__).resolve().parent

_UNIX = 3
"""In a zip file, that permissions are those of Unix."""


def build_archive(bundle_directory: Path, model_name: str, version: str, directory: Path) -> Path:
    """Build `directory`/`model_name`.mar with torch-model-archiver.

    It holds the handler, serve/answering, mlp_dist/core, the bundle's three files and TorchServe's settings
    for the model.
    """
    extra = directory / "extra"
    package = Path(mlp_dist.__file__).parent
    compiled = shutil.ignore_patterns("__pycache__")
    for whole in (package / "core", HERE / "answering"):
        shutil.copytree(whole, extra / whole.parent.name / whole.name, ignore=compiled)
        shutil.copy(whole.parent / "__init__.py", extra / whole.parent.name)
    for name in (SPEC, GOLDEN):
        shutil.copy(bundle_directory / name, extra)
    # The archiver stages in a directory named after the model, which parallel builds would share.
    temporary = directory / "tmp"
    temporary.mkdir()
    arguments = {
        "--model-name": model_name,
        "--version": version,
        "--handler": HERE / "handler.py",
        "--serialized-file": bundle_directory / WEIGHTS,
        "--extra-files": extra,
        "--config-file": HERE / "model-config.yaml",
        "--export-path": directory,
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    _run([sys.executable, "-m", "model_archiver.model_packaging", *words], TMPDIR=str(temporary))
    mar = directory / f"{model_name}.mar"
    seal(mar)
    return mar


def seal(mar: Path) -> None:
    """Name the sha256 of each file in the archive's manifest, and write it so that the same files give the
    same bytes: the archiver stamps the time on them, and takes them in the order of the directory.
    """
    with tempfile.TemporaryDirectory(prefix="mlp-seal-") as name, zipfile.ZipFile(mar) as made:
        directory = Path(name)
        made.extractall(directory)
        manifest = json.loads((directory / MANIFEST).read_text())
        manifest.pop("createdOn", None)
        sums = sha256_sums(directory)
        files = {name: (directory / name).read_bytes() for name in sums}
    files[MANIFEST] = (json.dumps({**manifest, SUMS: sums}, indent=2, sort_keys=True) + "\n").encode()
    # Not compressed, which gains little of weights, and is not the same with every zlib.
    with zipfile.ZipFile(mar, "w", zipfile.ZIP_STORED) as sealed:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = _UNIX, 0o644 << 16
            sealed.writestr(entry, files[name])


def check_archive(mar: Path, bundle: "Bundle", directory: Path) -> None:
    """Unpack the archive and ask it, in a process that has only torch, torchvision and ts.

    Raises PackagingError unless it answers the golden image as the trained model did.
    """
    unpacked = directory / "unpacked"
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(unpacked)
    output = _run([sys.executable, "-I", str(HERE / "verify.py"), str(unpacked)])
    golden = dict(zip(bundle.spec.classes, bundle.spec.golden_probabilities, strict=True))
    try:
        check_probabilities(json.loads(output.splitlines()[-1]), golden)
    except BundleError as error:
        raise PackagingError(f"the archive was not put in place: {error}") from error


def _run(words: list[str], **environment: str) -> str:
    """Run a command for its stdout. Raises PackagingError with the end of what it said when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PackagingError(f"the archive was not put in place: {Path(words[-1]).name} failed:\n{end}")
    return done.stdout


def package(
    run: find.StoredRun, model_name: str, export_path: Path, data_dir: Path | None
) -> dict[str, object]:
    """Export, build, check, and only then put in place; returns what the last line says."""
    with tempfile.TemporaryDirectory(prefix="mlp-package-") as name, progress.stages("packaging") as begin:
        directory = Path(name)
        begin("the test images")
        # It imports torch.
        from mlp_dist.tracking import export

        exported = export.export_run(run, directory / "run", data_dir)
        test = exported.test
        progress.tell(_scores(test))
        begin("the archive")
        # One version a run: two archives of one run are the same model.
        version = run.run_id[:8]
        mar = build_archive(exported.directory, model_name, version, directory)
        begin("its answer")
        check_archive(mar, exported.bundle, directory)
        place = export_path / mar.name
        try:
            with replacing_file(place) as temporary:
                shutil.copyfile(mar, temporary)
        except OSError as error:
            raise PackagingError(
                f"{place} cannot be written ({error.strerror}); choose another --export-path"
            ) from error
        return {
            "mar": str(place),
            "run_id": run.run_id,
            "version": version,
            "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
            "test_accuracy": test.accuracy,
            "test_ece": test.ece,
            "temperature": test.temperature,
        }


def _scores(test: "Evaluation") -> str:
    """What to tell of the model's answers for the test images."""
    told = f"test accuracy {test.accuracy:.2%}, expected calibration error {test.ece:.2%}"
    if test.temperature == 1:
        return f"{told}, without a temperature: there were no validation images to fit one on"
    return f"{told} at temperature {test.temperature:.3f}, {test.uncalibrated_ece:.2%} without"


def _parse() -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m serve.package", usage="python -m serve.package [FLAG ...]", description=__doc__
    )
    which = parser.add_argument_group("which run (the champion, else the best by val_accuracy)")
    which.add_argument("--run-id", metavar="ID", help="this one, by its id, the beginning of it, or its name")
    which.add_argument(
        "--experiment", metavar="NAME", help=f"the best run of this experiment ({DEFAULT_EXPERIMENT})"
    )
    which.add_argument("--metric", metavar="NAME", help="the best run by val_accuracy (default) or val_loss")
    which.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="where the test images are (where the run had them)"
    )
    where = parser.add_argument_group("where its archive goes")
    where.add_argument("--model-name", metavar="NAME", default=MAR.stem, help=f"({MAR.stem})")
    where.add_argument("--export-path", metavar="DIR", type=Path, default=MAR.parent, help=f"({MAR.parent})")
    return parser.parse_args()


def main() -> None:
    args = _parse()
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", args.model_name):
        raise UsageError(f"model-name {args.model_name!r} must be letters, digits, '-', '_' and '.'")
    with progress.stages("choosing the run"):
        run = find.find_run(args.run_id) if args.run_id else registry.chosen_run(args.experiment, args.metric)
    print(f"packaging run {run.name} ({run.run_id}), trained on {run.dataset}", flush=True)
    result = package(run, args.model_name, args.export_path, args.data_dir)
    print(next_steps.after_packaging(Path(str(result["mar"])), MAR))
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
