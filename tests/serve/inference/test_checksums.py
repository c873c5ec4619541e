"""A worker refuses an archive whose files differ from the packaged ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serve.inference.checksums import SUMS, ArchiveError, check_files, sha256_sums

CHANGES: dict[str, Callable[[Path], object]] = {
    "weights.pt": lambda path: path.write_text("other"),
    "core/image.py": lambda path: path.unlink(),
    "core/a.py": lambda path: path.touch(),
    "core/__pycache__/image.pyc": lambda path: path.touch(),
}


@pytest.mark.parametrize(("name", "change"), CHANGES.items(), ids=CHANGES)
def test_changed_files_are_named(name: str, change: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "core/__pycache__").mkdir(parents=True)
    for each in ("weights.pt", "core/image.py"):
        (tmp_path / each).write_text(each)
    manifest = {SUMS: sha256_sums(tmp_path)}
    # Python compiles the handler before it runs.
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/handler.pyc").touch()
    check_files(tmp_path, manifest)
    change(tmp_path / name)
    with pytest.raises(ArchiveError, match=rf"differs from the packaged one in {name};"):
        check_files(tmp_path, manifest)
