import zipfile
from pathlib import Path

import pytest

from mlp_dist.core.errors import PackagingError, UsageError
from serve.archive import read_archive


def test_invalid_archives(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no .*nope\.mar; package a run first"):
        read_archive(tmp_path / "nope.mar")
    (tmp_path / "half.mar").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(PackagingError, match=r"half\.mar is damaged"):
        read_archive(tmp_path / "half.mar")
    with zipfile.ZipFile(tmp_path / "other.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
    with pytest.raises(PackagingError, match=r"not an archive of python -m serve\.package"):
        read_archive(tmp_path / "other.mar")
