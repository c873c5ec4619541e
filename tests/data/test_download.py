import gc
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlp_dist.core.errors import DownloadError
from mlp_dist.data import download as module
from mlp_dist.data.download import download

FILES = {"first.gz": bytes(range(256)) * 1200, "second.gz": b"short", "empty.gz": b""}
SUMS = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in FILES.items()}
PAUSES = (0.01, 0.02, 0.03, 0.04)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", PAUSES)


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)


@pytest.fixture
def refusing() -> str:
    """A mirror that nobody serves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


class Moody:
    """A mirror that answers its n-th request in the n-th of `moods`, and any later one in the last.

    "good"; "break" (half the file); "damage" (other bytes, as many); "500"; "drip" (the file in small
    pieces, slowly); "slow start" (the good file, but after 0.3 seconds).
    """

    def __init__(self, moods: Sequence[str]) -> None:
        self.moods, self.requests, self.url = moods, list[str](), ""
        self.closing = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.removeprefix("/")
        mood = self.moods[min(len(self.requests), len(self.moods) - 1)]
        self.requests.append(name)
        data = FILES[name]
        if mood == "500":
            request.send_error(500)
            return
        if mood == "slow start":
            self.closing.wait(0.3)
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if mood == "drip":
            while not self.closing.wait(0.05):
                request.wfile.write(b"0123456789")
        elif mood == "break":
            request.wfile.write(data[: len(data) // 2])
        else:
            request.wfile.write(data[::-1] if mood == "damage" else data)


@pytest.fixture
def moody() -> Iterator[Callable[..., Moody]]:
    """A function (*moods) -> a Moody mirror that is open until the test ends."""
    with ExitStack() as servers:

        def start(*moods: str) -> Moody:
            mirror = Moody(moods)

            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    with suppress(ConnectionError):
                        mirror.answer(self)

                def log_message(self, format: str, *args: object) -> None:
                    pass

            server = servers.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            mirror.url = f"http://127.0.0.1:{server.server_port}/"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            servers.callback(thread.join)
            servers.callback(server.shutdown)
            servers.callback(mirror.closing.set)
            return mirror

        yield start


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
            rf"\(http://.*/first.gz has md5 {SUMS['first.gz']}, expected 0{{32}}: the download is damaged\)",
        ),
        (
            "half",
            SUMS["first.gz"],
            r"cannot download first.gz \(the download broke off after 153600 of 307200 bytes\)",
        ),
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
    with pytest.raises(DownloadError, match=r"^cannot download first.gz \(.*Not Found\), tried 5 times$"):
        download(SUMS, [serve_files({}).url, serve_files({}).url], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    # A connection left open is told of when it is collected, and should be in this test.
    gc.collect()


def test_every_mirror_refuses_the_connection(refusing: str, tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"^cannot download first.gz \(.*Connection refused\), tried 5 times$"
    ):
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
        DownloadError,
        match=r"^cannot download first.gz \((no answer within 0 seconds|.*timed out)\), tried 5 times$",
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
    with pytest.raises(DownloadError, match=r"^cannot write .*/raw/first.gz \(.+\); .*--data-dir$"):
        download(SUMS, [serve_files(FILES).url], tmp_path / "raw")
    assert contents(tmp_path) == {"raw": b"a file"}


def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"^cannot download first.gz \(.+\), tried 5 times$"):
        download(SUMS, ["http://no-such-host.invalid/"], tmp_path)


# Several tries


@pytest.mark.parametrize("mood", ["break", "damage", "500"])
@pytest.mark.parametrize("bad_tries", [1, 2, 3, 4])
def test_a_later_try_succeeds(moody: Callable, tmp_path: Path, mood: str, bad_tries: int) -> None:
    mirror = moody(*[mood] * bad_tries, "good")
    download(SUMS, [mirror.url], tmp_path)
    assert contents(tmp_path) == FILES
    assert mirror.requests == ["first.gz"] * (bad_tries + 1) + ["second.gz", "empty.gz"]


@pytest.mark.slow
@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("before", [{}, {"first.gz": b"old"}], ids=["new", "over an old file"])
@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("break", "the download broke off after 153600 of 307200 bytes"),
        ("damage", "http://.*/first.gz has md5 .*"),
        ("500", "HTTP Error 500: Internal Server Error"),
        ("drip", r"too slow: \d+ bytes in \d seconds"),
    ],
)
def test_five_tries_are_made_and_nothing_is_left(
    moody: Callable, tmp_path: Path, mood: str, reason: str, before: dict[str, bytes]
) -> None:
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    mirror, started = moody(mood), time.monotonic()
    with pytest.raises(DownloadError, match=rf"^cannot download first.gz \({reason}\), tried 5 times$"):
        download(SUMS, [mirror.url], tmp_path)
    assert mirror.requests == ["first.gz"] * 5
    assert time.monotonic() - started < 10
    assert contents(tmp_path) == before
    gc.collect()


def test_each_pause_is_told_and_longer_than_the_one_before(
    moody: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    with pytest.raises(DownloadError):
        download(SUMS, [moody("500").url], tmp_path)
    assert slept == [0.5, 1, 2, 4]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"cannot download first.gz (HTTP Error 500: Internal Server Error); try {number} of 5 in {pause} s"
        for number, pause in ((2, "0.5"), (3, "1"), (4, "2"), (5, "4"))
    ]


def test_what_arrived_whole_is_not_brought_again(moody: Callable, tmp_path: Path) -> None:
    mirror = moody("good", "break", "good", "break", "good")
    download(SUMS, [mirror.url], tmp_path)
    assert contents(tmp_path) == FILES
    assert mirror.requests == ["first.gz", "second.gz", "second.gz", "empty.gz"]
    mirror = moody("good", "break")
    (tmp_path / "more").mkdir()
    with pytest.raises(DownloadError, match=r"^cannot download second.gz "):
        download(SUMS, [mirror.url], tmp_path / "more")
    assert contents(tmp_path / "more") == {"first.gz": FILES["first.gz"]}


@pytest.mark.parametrize("mood", ["break", "damage", "500"])
def test_the_next_try_asks_the_other_mirror(moody: Callable, tmp_path: Path, mood: str) -> None:
    bad, good = moody(mood), moody("slow start", "good")
    download(SUMS, [bad.url, good.url], tmp_path)
    assert contents(tmp_path) == FILES
    assert bad.requests == ["first.gz"]


def test_tries_go_over_the_mirrors(moody: Callable, tmp_path: Path) -> None:
    first, second = moody("break"), moody("slow start", "break")
    with pytest.raises(DownloadError, match="tried 5 times"):
        download(SUMS, [first.url, second.url], tmp_path)
    # All are asked in the first try; then the one that did not fail in the try before.
    assert (len(first.requests), len(second.requests)) == (3, 3)
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("short_times")
def test_an_answer_that_comes_too_late_is_closed(moody: Callable, tmp_path: Path) -> None:
    slow, good = moody("slow start"), moody("good")
    download(SUMS, [slow.url, good.url], tmp_path)
    assert contents(tmp_path) == FILES
    time.sleep(0.5)
    gc.collect()


def test_a_disk_that_is_full_is_not_tried_again(
    moody: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlp_dist.core.io._sync", full)
    mirror = moody("good")
    with pytest.raises(DownloadError, match=r"^cannot write .*first.gz \(No space left on device\)"):
        download(SUMS, [mirror.url], tmp_path)
    assert mirror.requests == ["first.gz"]
    assert contents(tmp_path) == {}
    assert capsys.readouterr().err == ""


def test_a_network_without_an_answer_is_given_up_within_40_seconds() -> None:
    assert module.TRIES == 5
    assert sorted(set(module.PAUSES)) == list(module.PAUSES)
    assert module.TRIES * module.FIRST_ANSWER_SECONDS + sum(module.PAUSES) < 40
