"""Copies of this checkout, to change and to type commands in."""

import shutil
import subprocess
from pathlib import Path

from tests.helpers.launching import ROOT


def copy_checkout(directory: Path) -> Path:
    """The files that git knows of, or would, without what trainings and servers left."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return directory
