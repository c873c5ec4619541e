import gc
import hashlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlp_dist.core.errors import DownloadError
from mlp_dist.data import download as module
from mlp_dist.data.download import download

FILES = {"first.gz": bytes(range(256)) * 1200, "second.gz": b"short", "empty.gz": b""}
SUMS = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in FILES.items()}


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.5)


@pytest.fixture
def refusing() -> str:
    """A mirror that nobody serves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


@pytest.mark.parametrize("manner", ["good", "unsized", "odd"])
def test_files_are_brought_whole(serve_files: Callable, tmp_path: Path, manner: str) -> None:
    mirror = serve_files(FILES, manner)
    download(SUMS, [mirror.url], tmp_path / "a" / "raw")
    assert contents(tmp_path / "a" / "raw") == FILES
    assert set(mirror.requests) == set(FILES)


def test_only_what_is_asked_for_is_brought(serve_files: Callable, tmp_path: Path) -> None:
    (tmp_path / "first.gz").write_bytes(b"mine")
    download({"second.gz": SUMS["second.gz"]}, [serve_files(FILES).url], tmp_path)
    assert contents(tmp_path) == {"first.gz": b"mine", "second.gz": FILES["second.gz"]}


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("before", [{}, {"first.gz": b"old"}], ids=["new", "over an old file"])
@pytest.mark.parametrize(
    ("manner", "md5", "message"),
    [
        (
            "good",
            "0" * 32,
            rf"http://.*/first.gz has md5 {SUMS['first.gz']}, expected 0{{32}}: the download is damaged",
        ),
        ("half", SUMS["first.gz"], "first.gz .*(the download is damaged|IncompleteRead)"),
        ("stalled", SUMS["first.gz"], r"cannot download first.gz \(.*timed out\)"),
    ],
)
def test_a_bad_download_leaves_nothing_behind(
    serve_files: Callable, tmp_path: Path, before: dict[str, bytes], manner: str, md5: str, message: str
) -> None:
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DownloadError, match=message):
        download({"first.gz": md5}, [serve_files(FILES, manner).url], tmp_path)
    assert contents(tmp_path) == before


def test_a_missing_file_is_named_and_the_one_before_it_stays(serve_files: Callable, tmp_path: Path) -> None:
    mirror = serve_files({"second.gz": FILES["second.gz"]})
    with pytest.raises(DownloadError, match=r"cannot download first.gz \(.*404.*\)"):
        download({name: SUMS[name] for name in ("second.gz", "first.gz")}, [mirror.url], tmp_path)
    assert contents(tmp_path) == {"second.gz": FILES["second.gz"]}


def test_every_mirror_answers_404(serve_files: Callable, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"^cannot download first.gz \(.*Not Found\)$"):
        download(SUMS, [serve_files({}).url, serve_files({}).url], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    # A connection left open is told of when it is collected, and should be in this test.
    gc.collect()


def test_every_mirror_refuses_the_connection(refusing: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"^cannot download first.gz \(.*Connection refused\)$"):
        download(SUMS, [refusing], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("manners", [["silent"], ["dribbling"], ["silent", "dribbling", "silent"]], ids=str)
def test_mirrors_without_an_answer_are_given_up_together(
    serve_files: Callable, tmp_path: Path, manners: list[str]
) -> None:
    mirrors = [serve_files(FILES, manner).url for manner in manners]
    started = time.monotonic()
    with pytest.raises(
        DownloadError, match=r"^cannot download first.gz \((no answer within 0 seconds|.*timed out)\)$"
    ):
        download(SUMS, mirrors, tmp_path / "raw")
    assert time.monotonic() - started < 5
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("first", ["missing", "refusing", "silent"])
@pytest.mark.parametrize("order", [1, -1], ids=["second", "first"])
def test_the_mirror_that_answers_is_taken(
    serve_files: Callable, refusing: str, tmp_path: Path, first: str, order: int
) -> None:
    bad = refusing if first == "refusing" else serve_files({}, "silent" if first == "silent" else "good").url
    good = serve_files(FILES)
    started = time.monotonic()
    download(SUMS, [bad, good.url][::order], tmp_path)
    assert time.monotonic() - started < 5
    assert contents(tmp_path) == FILES


def test_a_directory_that_cannot_be_made(serve_files: Callable, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"a file")
    with pytest.raises(DownloadError, match=r"cannot download first.gz .*raw"):
        download(SUMS, [serve_files(FILES).url], tmp_path / "raw")
    assert contents(tmp_path) == {"raw": b"a file"}


def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"^cannot download first.gz \(.+\)$"):
        download(SUMS, ["http://no-such-host.invalid/"], tmp_path)
