import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mlp_dist.core.io import locked, remove_left, replacing_directory, replacing_file, try_to_lock


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def fail(replacing: AbstractContextManager[Path], error: BaseException) -> None:
    with replacing as temporary:
        (temporary / "fresh" if temporary.is_dir() else temporary).write_text("half")
        raise error


def run_until_killed(script: str) -> None:
    killed = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert killed.returncode == -signal.SIGKILL


# Replacing


def test_file_and_directory_are_replaced_at_the_end(tmp_path: Path) -> None:
    file, bundle = tmp_path / "a" / "file.txt", tmp_path / "a" / "bundle"
    for new, before in (("old", None), ("new", "old")):
        with replacing_file(file) as temporary:
            temporary.write_text(new)
            assert (file.read_text() if file.exists() else None) == before
        with replacing_directory(bundle) as temporary:
            (temporary / new).touch()
            assert (names(bundle) if bundle.exists() else [None]) == [before]
        assert (file.read_text(), names(bundle)) == (new, [new])
        assert names(tmp_path / "a") == ["bundle", "file.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_keeps_the_old_content(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail(replacing_file(tmp_path / "file.txt"), error)
    assert names(tmp_path) == []
    (tmp_path / "file.txt").write_text("old")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "stale").write_text("old")
    for replacing in (replacing_file(tmp_path / "file.txt"), replacing_directory(tmp_path / "bundle")):
        with pytest.raises(type(error)):
            fail(replacing, error)
    assert names(tmp_path) == ["bundle", "file.txt"]
    assert (tmp_path / "file.txt").read_text() == (tmp_path / "bundle" / "stale").read_text() == "old"


# After a kill


def test_kill_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.write_text("old")
    run_until_killed(f"""
import os, signal
from pathlib import Path
from mlp_dist.core.io import replacing_file
with replacing_file(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
""")
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    remove_left(tmp_path)
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("is_moved", [True, False])
def test_remove_left_restores_a_directory(is_moved: bool, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "content").write_text("old")
    run_until_killed(f"""
import os, signal
from pathlib import Path
from mlp_dist.core.io import replacing_directory
rename, count = os.replace, 0
def kill(source, target):
    global count
    count += 1
    if count == {1 + is_moved}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = kill
with replacing_directory(Path({str(path)!r})) as temporary:
    (temporary / "content").write_text("new")
""")
    assert path.exists() != is_moved
    remove_left(tmp_path)
    assert names(tmp_path) == ["bundle"]
    assert (path / "content").read_text() == "old"


def test_remove_left_keeps_other_files(tmp_path: Path) -> None:
    expected = [".bashrc.backup.old", ".hidden", ".notes.draft.tmp", ".tmp", "a.tmp", "b.1.old", "last.pt"]
    for name in expected:
        (tmp_path / name).write_text(name)
    remove_left(tmp_path)
    assert names(tmp_path) == expected


# Locks


def test_lock_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "valuable").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "valuable")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "valuable").read_text() == "kept"


def test_locks_end_with_their_process(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from mlp_dist.core.io import locked, try_to_lock
directory = Path({str(tmp_path)!r})
with locked(directory / "lock"):
    held = try_to_lock(directory)
    print(held is not None, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert try_to_lock(tmp_path) is None
        process.kill()
    with locked(tmp_path / "lock"):
        held = try_to_lock(tmp_path)
    assert held is not None
    assert try_to_lock(tmp_path) is None
    os.close(held)
    assert names(tmp_path) == []
