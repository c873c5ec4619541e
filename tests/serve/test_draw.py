"""The drawing page: what it starts and stops, what it shows, and whether it recognizes drawn digits."""

import base64
import io
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from playwright.sync_api import Page

from serve import server
from tests.helpers.draw_page import Demo, clear, draw, opened_page, running_demo
from tests.helpers.launching import Trained
from tests.helpers.mlflow_pages import CHROMIUM
from tests.helpers.strokes import WAYS, drawn


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


def pixels(page: Page, picture: str) -> np.ndarray:
    source = page.locator(f"#answer img[alt={picture}]").get_attribute("src") or ""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


# The tests below share one page; the last one stops it.


@pytest.mark.nightly
def test_recognizes_drawn_digits(page: Page) -> None:
    chance, answers = random.Random(0), {}
    box = page.locator("#pad canvas").bounding_box()
    assert box is not None
    for digit, ways in WAYS.items():
        for way, strokes in enumerate(ways):
            answers[digit, way] = draw(page, drawn(strokes, chance, box["width"]))
            clear(page)
    assert list(WAYS) == list("0123456789")
    assert answers == {(digit, way): digit for digit, way in answers}


@pytest.mark.nightly
def test_shows_an_answer(page: Page, trained_on_mnist: Trained) -> None:
    page.locator("#examples button").nth(3).click()
    answer = page.locator("#answer")
    answer.get_by_text("sure about a test image, a 3").wait_for()
    assert re.search(r"answered in \d+ ms", answer.inner_text())
    rows = [row.inner_text().split() for row in answer.locator("tr").all()]
    assert [name for name, _ in rows] == list("0123456789")
    assert sum(float(value.rstrip("%")) for _, value in rows) == pytest.approx(100, abs=0.5)
    assert pixels(page, "image").shape == (28, 28)
    assert pixels(page, "heat_map").shape == (280, 280, 3)
    answer.get_by_text(f"Run {trained_on_mnist.result['run_id']}.").wait_for()


@pytest.mark.nightly
def test_shows_errors(page: Page) -> None:
    file, alert = page.locator("#file input[type=file]"), page.get_by_role("alert")
    file.set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"%PDF-1.7"})
    alert.get_by_text("8 bytes are not a PNG, JPEG, GIF, BMP, WEBP or TIFF image but PDF").wait_for()
    assert alert.get_by_text("No answer to notes.png").is_visible()
    page.locator("#file").get_by_label("Clear").click()
    page.locator("#answer .waiting").wait_for()


@pytest.mark.nightly
def test_stops_what_it_started(page: Page, demo: Demo) -> None:
    started = psutil.Process(demo.process.pid).children(recursive=True)
    assert len(started) == 3
    assert any(line.startswith("TorchServe is ready at http://127.0.0.1:") for line in demo.lines)
    for process in started:
        if "org.pytorch.serve.ModelServer" in process.cmdline():
            process.kill()
            psutil.wait_procs([process], timeout=10)
    page.locator("#examples button").first.click()
    alert = page.get_by_role("alert")
    alert.get_by_text("No answer from the server").wait_for()
    assert "Connection refused" in alert.inner_text()
    demo.interrupt()
    assert demo.process.returncode == 0
    # Their new parent may not reap them.
    assert [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
