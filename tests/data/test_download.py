"""Downloads by torchvision from servers of our own: other mirrors, later tries, and their end."""

import gc
import gzip
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torchvision import datasets as torchvision_datasets

from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import DownloadError
from mlp_dist.data import datasets as module
from mlp_dist.data.datasets import prepare_dataset
from tests.data.test_datasets import PACKED as FILES
from tests.data.test_datasets import use_small_mnist

UNREACHABLE = "http://127.0.0.1:9/"


# torchvision keeps the errors of mirrors, and with them their connections, open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def small_source(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_small_mnist(monkeypatch)
    yield
    gc.collect()


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """A function (*mirrors) that downloads FILES from them and returns the compressed files."""

    def from_mirrors(*mirrors: str) -> dict[str, bytes]:
        monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", list(mirrors))
        module.download(CATALOG["mnist"], tmp_path / "a")
        return {path.name: path.read_bytes() for path in (tmp_path / "a" / "MNIST" / "raw").glob("*.gz")}

    return from_mirrors


@pytest.mark.parametrize("bad", ["404", "half", "damaged"])
def test_takes_the_next_mirror_if_one_fails(serve_files: Callable, fetch: Callable, bad: str) -> None:
    first = {
        "404": lambda: serve_files({}).url,
        "half": lambda: serve_files(FILES, "half").url,
        "damaged": lambda: serve_files({name: gzip.compress(b"other") for name in FILES}).url,
    }
    assert fetch(first[bad](), serve_files(FILES).url) == FILES


def test_a_later_try_succeeds(
    serve_files: Callable, fetch: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(serve_files(FILES, "500", num_bad=3).url) == FILES
    output, errors = capsys.readouterr()
    assert "cannot download MNIST (Error downloading " in errors
    assert "HTTP Error 500" in errors
    assert output == ""


def test_gives_up_after_five_tries(
    fetch: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DownloadError, match=r"^Error downloading .*Connection refused.*, tried 5 times$"):
        fetch(UNREACHABLE)
    assert "; try 5 of 5 in 0.01 s" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DownloadError, match=r"^Could not download MNIST: .*, tried 5 times\n"):
        prepare_dataset("mnist", tmp_path)


@pytest.mark.parametrize("manner", ["silent", "stalled"])
def test_gives_up_mirrors_that_hang(
    serve_files: Callable, fetch: Callable, manner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"^no answer for 0 seconds, tried \d times$"):
        fetch(serve_files(FILES, manner).url)
    assert time.monotonic() - started < 60


def test_directory_that_cannot_be_written(serve_files: Callable, fetch: Callable, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a file")
    with pytest.raises(DownloadError, match=r"^cannot write .*/raw/.* \(.+\); .*--data-dir$"):
        fetch(serve_files(FILES).url)
