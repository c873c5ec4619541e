"""Processes that come to one store, or to one run, together."""

import errno
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mlp_dist.tracking.store import one_at_a_time


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_no_two_are_in_it_and_no_file_is_left(directory: Path) -> None:
    within, most = 0, 0

    def come() -> None:
        nonlocal within, most
        for _ in range(100):
            with one_at_a_time("run"):
                within += 1
                most = max(most, within)
                time.sleep(0)
                within -= 1

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (within, most) == (0, 1)
    assert list(directory.iterdir()) == []


def test_those_of_another_do_not_wait(directory: Path) -> None:
    with one_at_a_time("one"), one_at_a_time("another"):
        assert len(list(directory.iterdir())) == 2


def test_a_link_that_somebody_laid_is_not_followed(directory: Path) -> None:
    with one_at_a_time("run"):
        (name,) = (path.name for path in directory.iterdir())
    valuable = directory / "valuable"
    valuable.write_text("kept")
    (directory / name).symlink_to(valuable)
    with pytest.raises(OSError, match="symbolic links") as caught, one_at_a_time("run"):
        pass
    assert caught.value.errno == errno.ELOOP
    assert valuable.read_text() == "kept"
