"""Full disks."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, *, megabytes: int) -> Iterator[Path]:
    """A small file system mounted on the new `directory`; skips the test without the permission to mount."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs to be root, to mount a file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def enlarge(directory: Path, *, megabytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(directory)], check=True)


def fill(directory: Path, *, leaving: int) -> Path:
    """A file that takes all but `leaving` bytes of the disk, in whole pages."""
    disk = os.statvfs(directory)
    path = directory / "filler"
    path.write_bytes(b"\0" * (disk.f_bavail * disk.f_bsize - leaving))
    return path
