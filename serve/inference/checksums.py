"""Compares an archive's files with the sha256 sums in its manifest.

Imports only the standard library, because it runs before any of those files may.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "MAR-INF/MANIFEST.json"
SUMS = "sha256"
"""Key of the manifest: file name -> sha256."""


class ArchiveError(Exception):
    """A model archive that differs from the packaged one."""


def sha256_sums(directory: Path) -> dict[str, str]:
    """Sums of all files under `directory`, sorted by name.

    Leaves out the manifest and the compiled handler, which Python writes before this check.
    """
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if name != MANIFEST and path.parent != directory / "__pycache__"
    }


def check_files(directory: Path, manifest: Mapping[str, Any] | None) -> None:
    """Raise ArchiveError, naming the files, if any were changed, removed or added."""
    expected = (manifest or {}).get(SUMS)
    if not isinstance(expected, dict):
        raise ArchiveError(f"{MANIFEST} has no {SUMS} sums; package the run again: python -m serve.package")
    found = sha256_sums(directory)
    if changed := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        raise ArchiveError(
            f"the archive differs from the packaged one in {', '.join(changed)}; package the run again"
        )
