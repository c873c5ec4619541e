"""Copies of this checkout."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.helpers.launching import ROOT


def tracked_files() -> list[str]:
    """Existing files that git tracks or would track, relative to the root."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and os.path.lexists(ROOT / name)]


def copy_checkout(directory: Path) -> Path:
    """Copy the tracked files, without what trainings and servers wrote."""
    for name in tracked_files():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return directory
