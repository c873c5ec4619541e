import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mlp_dist.core.io import remove_left, replacing_directory, replacing_file


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def fail(replacing: AbstractContextManager[Path], error: BaseException) -> None:
    """Write a part, then raise."""
    with replacing as temporary:
        (temporary / "fresh" if temporary.is_dir() else temporary).write_text("half")
        raise error


def test_file_is_written_and_its_directory_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    with replacing_file(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".a*.txt.1.tmp", ".a*.txt.2.tmp", ".b.txt.1.tmp"))
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    with replacing_file(tmp_path / "a*.txt") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [".a*.txt.2.tmp", ".b.txt.1.tmp", "a*.txt"]


def test_file_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_file_survives_a_failure(tmp_path: Path, error: BaseException, exists: bool) -> None:
    path = tmp_path / "file.txt"
    if exists:
        path.write_text("old")
    with pytest.raises(type(error)):
        fail(replacing_file(path), error)
    assert names(tmp_path) == (["file.txt"] if exists else [])
    assert not exists or path.read_text() == "old"


def test_file_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing_file(path):
        pass
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_directory_is_written_and_its_parents_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "bundle"
    with replacing_directory(path) as temporary:
        (temporary / "one").write_text("1")
        (temporary / "deep").mkdir()
        (temporary / "deep" / "two").write_text("2")
        assert not path.exists()
    assert names(path) == ["deep", "one"]
    assert (path / "deep" / "two").read_text() == "2"
    assert names(path.parent) == ["bundle"]


def test_directory_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "stale").write_text("old")
    with replacing_directory(path) as temporary:
        (temporary / "fresh").write_text("new")
        assert names(path) == ["stale"]
    assert names(path) == ["fresh"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_directory_survives_a_failure(tmp_path: Path, error: BaseException, exists: bool) -> None:
    path = tmp_path / "bundle"
    if exists:
        path.mkdir()
        (path / "stale").write_text("old")
    with pytest.raises(type(error)):
        fail(replacing_directory(path), error)
    assert names(tmp_path) == (["bundle"] if exists else [])
    assert not exists or (path / "stale").read_text() == "old"


def test_directory_survives_a_failing_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "stale").write_text("old")
    rename = os.replace

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if (Path(source) / "fresh").exists():
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(OSError, match="Input/output error"), replacing_directory(path) as temporary:
        (temporary / "fresh").write_text("new")
    assert names(tmp_path) == ["bundle"]
    assert (path / "stale").read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_kill_while_writing_leaves_the_old_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "target"
    if kind == "directory":
        path.mkdir()
    content = path / "content" if kind == "directory" else path
    content.write_text("old")
    script = f"""
import os, signal
from pathlib import Path
from mlp_dist.core.files import replacing_{kind}
with replacing_{kind}(Path({str(path)!r})) as temporary:
    ({"temporary / 'content'" if kind == "directory" else "temporary"}).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert content.read_text() == "old"
    with (replacing_directory if kind == "directory" else replacing_file)(path) as temporary:
        (temporary / "content" if kind == "directory" else temporary).write_text("new")
    assert content.read_text() == "new"


# What a killed writer left


def test_what_killed_writers_left_is_cleared_up(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.4711-0123abcd.tmp").touch()
    (tmp_path / ".bundle.4711.tmp" / "deep").mkdir(parents=True)
    (tmp_path / ".bundle.4711.old").mkdir()
    (tmp_path / ".bundle.4711.old" / "content").write_text("older")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "content").write_text("new")
    remove_left(tmp_path)
    assert names(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "content").read_text() == "new"


def test_a_directory_that_was_only_moved_aside_is_put_back(tmp_path: Path) -> None:
    for name in ("bundle", "a.b.c"):
        (tmp_path / f".{name}.4711.old").mkdir()
        (tmp_path / f".{name}.4711.old" / "content").write_text(name)
        (tmp_path / f".{name}.4711.tmp").mkdir()
    remove_left(tmp_path)
    assert names(tmp_path) == ["a.b.c", "bundle"]
    assert {name: (tmp_path / name / "content").read_text() for name in names(tmp_path)} == {
        "a.b.c": "a.b.c",
        "bundle": "bundle",
    }


def test_what_no_writer_left_stays(tmp_path: Path) -> None:
    expected = [".bashrc.backup.old", ".hidden", ".notes.draft.tmp", ".tmp", "a.tmp", "b.1.old", "last.pt"]
    for name in expected:
        (tmp_path / name).write_text(name)
    remove_left(tmp_path)
    assert names(tmp_path) == expected
    remove_left(tmp_path / "nowhere")


@pytest.mark.parametrize("moved", [True, False])
def test_a_killed_writer_s_directory_is_whole_after_clearing_up(moved: bool, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "content").write_text("old")
    script = f"""
import os, signal
from pathlib import Path
from mlp_dist.core.files import replacing_directory
rename, count = os.replace, 0
def kill(source, target):
    global count
    count += 1
    if count == {1 + moved}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = kill
with replacing_directory(Path({str(path)!r})) as temporary:
    (temporary / "content").write_text("new")
"""
    killed = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert path.exists() != moved
    remove_left(tmp_path)
    assert names(tmp_path) == ["bundle"]
    assert (path / "content").read_text() == "old"
