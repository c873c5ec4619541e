"""A worker refuses an archive whose files differ from the packaged ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serve.inference.checksums import SUMS, ArchiveError, check_files, sha256_sums

CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda place: (place / "weights.pt").write_text("other"), r"\(changed: weights.pt\)"),
    "missing": (lambda place: (place / "core/image.py").unlink(), r"\(missing: core/image.py\)"),
    "added": (lambda place: (place / "core/a.py").touch(), r"\(added: core/a.py\)"),
    "compiled": (
        lambda place: (place / "core/__pycache__/image.pyc").touch(),
        "added: core/__pycache__/image",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_changed_files_are_named(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    (tmp_path / "core/__pycache__").mkdir(parents=True)
    for name in ("weights.pt", "core/image.py"):
        (tmp_path / name).write_text(name)
    manifest = {SUMS: sha256_sums(tmp_path)}
    # Python compiles the handler before it runs.
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/handler.pyc").touch()
    check_files(tmp_path, manifest)
    change(tmp_path)
    with pytest.raises(ArchiveError, match=message):
        check_files(tmp_path, manifest)
