"""The archive's files against the sha256 of each, before any of them is used.

Imports the standard library alone: what it stands guard over must not run first.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "MAR-INF/MANIFEST.json"
SUMS = "sha256"
"""The manifest's key for the sums, by file name."""


class ArchiveError(Exception):
    """A model archive that is not as it was packaged."""


def sha256_sums(directory: Path) -> dict[str, str]:
    """The sha256 of each file under `directory` but the manifest, by name, and in its order.

    The handler, which Python has compiled by then, is no part of it a second time.
    """
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if name != MANIFEST and path.parent != directory / "__pycache__"
    }


def check_files(directory: Path, manifest: Mapping[str, Any] | None) -> None:
    """Raise ArchiveError, which names them, where files were changed, are missing or were added."""
    expected = (manifest or {}).get(SUMS)
    if not isinstance(expected, dict):
        raise ArchiveError(
            f"{MANIFEST} has no {SUMS} of the archive's files; python -m serve.package writes them"
        )
    found = sha256_sums(directory)
    wrong = {
        "changed": [name for name in expected if name in found and found[name] != expected[name]],
        "missing": [name for name in expected if name not in found],
        "added": [name for name in found if name not in expected],
    }
    told = [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} {what}"
        for what, names in wrong.items()
        if names
    ]
    if told:
        raise ArchiveError(f"the archive is not as it was packaged: {'; '.join(told)}; package it again")
