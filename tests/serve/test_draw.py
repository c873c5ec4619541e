"""launch/draw.py: what it starts and ends, what its page shows, and whether it knows what is drawn."""

import base64
import io
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from playwright.sync_api import Page

from mlp_dist.data.image_set import Dataset
from tests.helpers.draw_page import SCRIPT, Demo, clear, draw, opened_page, running_demo
from tests.helpers.launching import Trained, run
from tests.helpers.mlflow_pages import CHROMIUM
from tests.helpers.strokes import WAYS, drawn

ZOMBIE = psutil.STATUS_ZOMBIE

WITHOUT_GRADIO = """
import runpy, sys
sys.modules["gradio"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package `chromium`")


def server(directory: Path, action: str) -> None:
    done = run([sys.executable, "-m", "serve.server", action], directory)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def demo(trained: Trained, packaged: Path, shared_ports: None) -> Iterator[Demo]:
    """Of a server that ran before. Whoever would reach another host would come to a proxy."""
    server(trained.directory, "start")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        with running_demo(trained.directory, HTTP_PROXY=address, HTTPS_PROXY=address, NO_PROXY="") as demo:
            yield demo
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    server(trained.directory, "stop")


@pytest.fixture(scope="module")
def page(demo: Demo) -> Iterator[Page]:
    with opened_page(demo.url) as page:
        yield page


def shown(page: Page, picture: str) -> np.ndarray:
    source = page.locator(f"#answer img[alt={picture}]").get_attribute("src") or ""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


# Without a browser


def test_no_model_has_been_packaged(tmp_path: Path) -> None:
    done = run([sys.executable, SCRIPT], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no model has been packaged yet: there is no model_store/mlp.mar; train one and package it: "
        "accelerate launch launch/train.py && python -m serve.package\n"
    )


@pytest.mark.slow
def test_without_gradio_and_with_a_port_that_is_taken(packaged: Path, tmp_path: Path) -> None:
    mar = ["--mar", str(packaged)]
    done = run([sys.executable, "-c", WITHOUT_GRADIO, SCRIPT, *mar], tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: the page needs gradio: make demo installs it, or pip install 'mlp_dist[demo]'\n",
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run([sys.executable, SCRIPT, *mar, "--port", str(port)], tmp_path)
    assert done.returncode == 1
    assert re.search(rf"error: port {port} is taken by process \d+ .*; give another with --port", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_it_starts_ends_with_it(trained: Trained, packaged: Path, shared_ports: None) -> None:
    with running_demo(trained.directory) as demo:
        started = psutil.Process(demo.process.pid).children(recursive=True)
        # TorchServe's launcher, Java, a worker; MLflow.
        assert len(started) >= 4
        assert re.fullmatch(r"TorchServe answers at http://127\.0\.0\.1:\d+", demo.said[-2])
        assert demo.interrupt()[1] == "ending what was started"
        assert demo.process.returncode == 0
        # Who is their parent then may not ask how they ended.
        assert [process for process in started if process.is_running() and process.status() != ZOMBIE] == []


# In a browser: the last test ends the server


@needs_chromium
@pytest.mark.slow
def test_each_digit_that_is_drawn_is_recognized(mnist_dir: Path, page: Page) -> None:
    chance, answers = random.Random(0), {}
    box = page.locator("#pad canvas").bounding_box()
    assert box is not None
    for digit, ways in WAYS.items():
        for way, strokes in enumerate(ways):
            answers[digit, way] = draw(page, drawn(strokes, chance, box["width"]))
            clear(page)
    assert list(WAYS) == list("0123456789")
    assert answers == {(digit, way): digit for digit, way in answers}


@needs_chromium
@pytest.mark.slow
def test_what_is_shown_of_an_answer(page: Page, demo: Demo, trained: Trained, image_data: Dataset) -> None:
    assert demo.said[-2].startswith("TorchServe runs already, at http://127.0.0.1:")
    number = 3
    page.locator("#examples button").nth(number).click()
    answer = page.locator("#answer")
    answer.get_by_text(f"sure about a test image, a {number}").wait_for()
    assert re.search(r"answered in \d+ ms", answer.inner_text())
    rows = [row.inner_text().split() for row in answer.locator("tr").all()]
    assert [name for name, _ in rows] == list(image_data.classes)
    assert sum(float(value.rstrip("%")) for _, value in rows) == pytest.approx(100, abs=0.5)
    widths = answer.locator("i").evaluate_all("bars => bars.map(bar => bar.style.width)")
    for (_, value), width in zip(rows, widths, strict=True):
        assert float(width.rstrip("%")) == pytest.approx(float(value.rstrip("%")), abs=0.06)
    first = int((image_data.test.labels == number).nonzero()[0])
    np.testing.assert_array_equal(shown(page, "image"), image_data.test.images[first, 0].numpy())
    assert shown(page, "heat_map").shape == (280, 280, 3)
    with page.expect_popup() as popup:
        answer.get_by_role("link", name=f"{trained.result['run_id'][:8]} in MLflow").click()
    popup.value.get_by_text(str(trained.result["run_id"])).first.wait_for()
    popup.value.close()


@needs_chromium
@pytest.mark.slow
def test_what_cannot_be_read_is_told(page: Page) -> None:
    file, alert = page.locator("#file input[type=file]"), page.get_by_role("alert")
    file.set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"%PDF-1.7"})
    alert.get_by_text("8 bytes are not a PNG, JPEG, GIF, BMP, WEBP or TIFF image but PDF").wait_for()
    assert alert.get_by_text("No answer to notes.png").is_visible()
    page.locator("#file").get_by_label("Clear").click()
    page.locator("#answer .waiting").wait_for()


@needs_chromium
@pytest.mark.slow
def test_an_empty_page_is_told(mnist_dir: Path, page: Page) -> None:
    """By models of MNIST, which look for a digit on it."""
    white = io.BytesIO()
    Image.new("L", (300, 200), 255).save(white, "PNG")
    page.locator("#file input[type=file]").set_input_files(
        {"name": "page.png", "mimeType": "image/png", "buffer": white.getvalue()}
    )
    page.get_by_role("alert").get_by_text("the page is empty: no digit stands out from it").wait_for()


@needs_chromium
@pytest.mark.slow
def test_a_server_that_is_gone_is_told(page: Page, demo: Demo, trained: Trained) -> None:
    server(trained.directory, "stop")
    page.locator("#examples button").first.click()
    alert = page.get_by_role("alert")
    alert.get_by_text("No answer from the server").wait_for()
    assert "Traceback" not in alert.inner_text()
    assert "Connection refused" in alert.inner_text()
