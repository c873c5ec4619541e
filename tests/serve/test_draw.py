"""The drawing page: what it starts and stops, what it shows, and whether it recognizes drawn digits."""

import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect

from serve import server
from tests.helpers.draw_page import Demo, clear, draw, opened_page, running_demo
from tests.helpers.launching import Trained
from tests.helpers.mlflow_pages import CHROMIUM
from tests.helpers.strokes import STROKES, drawn


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_reuses_a_running_server(
    trained: Trained, packaged: Path, shared_ports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.directory)
    state = server.launch(packaged)
    try:
        with running_demo(trained.directory) as demo:
            assert f"using the TorchServe at {state.url}" in demo.lines
        assert state.is_running()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def chromium() -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium: install the package `chromium`")


@pytest.fixture(scope="module")
def demo(
    chromium: None, trained_on_mnist: Trained, packaged_mnist: Path, shared_ports: None
) -> Iterator[Demo]:
    """A page with a proxy in its environment, which must get no request."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        with running_demo(trained_on_mnist.directory, HTTP_PROXY=url, HTTPS_PROXY=url, NO_PROXY="") as demo:
            yield demo
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.fixture(scope="module")
def page(demo: Demo) -> Iterator[Page]:
    with opened_page(demo.url) as page:
        yield page


# The tests below share one page, of a phone's size; the last one stops it.


@pytest.mark.nightly
def test_recognizes_drawn_digits(page: Page) -> None:
    chance, answer = random.Random(0), page.get_by_test_id("label-output-value")
    for digit, strokes in STROKES.items():
        draw(page, drawn(strokes, chance, 1.0))
        expect(answer).to_have_text(digit, timeout=60_000)
        clear(page)
    assert list(STROKES) == list("0123456789")


@pytest.mark.nightly
def test_a_dot_is_no_digit(page: Page) -> None:
    draw(page, [[(0.5, 0.5)]])
    page.get_by_text("Draw the whole digit").wait_for()


@pytest.mark.nightly
def test_shows_an_answer(page: Page, trained_on_mnist: Trained) -> None:
    page.locator(".gallery-item").nth(3).click()
    about, answer = page.locator("#about"), page.locator("#label")
    about.get_by_text("sure about a test image, a 3").wait_for()
    run_id = trained_on_mnist.result["run_id"]
    assert re.search(rf"answered in \d+ ms by run {run_id[:8]}", about.inner_text())
    assert sorted(answer.locator("dt").all_inner_texts()) == list("0123456789")
    assert about.locator("img[src^='data:image/png;base64,']").count() == 2
    pad, below = page.locator("#pad").bounding_box(), answer.bounding_box()
    assert 0 < below["y"] - pad["y"] - pad["height"] < 30
    assert below["y"] < 844 - 200


@pytest.mark.nightly
def test_shows_errors(page: Page) -> None:
    file = {"name": "notes.png", "mimeType": "image/png", "buffer": b"%PDF-1.7"}
    page.get_by_test_id("Upload a picture-upload-button").set_input_files(file)
    page.get_by_text("8 bytes are not a PNG, JPEG, GIF, BMP, WEBP, TIFF or PPM image but PDF").wait_for()
    assert page.get_by_text("No answer to notes.png").is_visible()


@pytest.mark.nightly
def test_stops_what_it_started(page: Page, demo: Demo) -> None:
    started = psutil.Process(demo.process.pid).children(recursive=True)
    assert len(started) == 3
    assert any(line.startswith("TorchServe is ready at http://127.0.0.1:") for line in demo.lines)
    for process in started:
        if "org.pytorch.serve.ModelServer" in process.cmdline():
            process.kill()
            psutil.wait_procs([process], timeout=10)
    page.locator(".gallery-item").first.click()
    page.get_by_text("No answer to a test image, a 0").wait_for()
    assert "Connection refused" in page.locator("#about").inner_text()
    demo.interrupt()
    assert demo.process.returncode == 0
    # Their new parent may not reap them.
    assert [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
