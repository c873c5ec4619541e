"""Take the screenshots in docs/images: `python -m docs.screenshots`, in a checkout with MNIST and Chromium.

It trains four models in a temporary directory, and packages and serves the best one.
"""

import io
import random
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.helpers.draw_page import draw, opened_page, running_demo
from tests.helpers.launching import result, run, train
from tests.helpers.mlflow_pages import Pages, opened
from tests.helpers.mlflow_servers import running_ui
from tests.helpers.strokes import STROKES, drawn

IMAGES = Path(__file__).parent / "images"

TRAININGS = ("", "--lr 0.05 --seed 1", "--hidden-sizes 256,64", "--optimizer adam --lr 0.001")
COLUMNS = (
    *(f"metrics.`{name}`" for name in ("best_val_accuracy", "test_accuracy", "test_ece")),
    *(f"params.`{name}`" for name in ("hidden_sizes", "lr", "optimizer", "seed")),
)

_SETTLE_MS = 2500
"""Milliseconds until charts stop moving."""

# The assistant's button covers part of the page.
_NO_BUTTON = """addEventListener("DOMContentLoaded", () => document.head.append(Object.assign(
    document.createElement("style"), {textContent: "button[data-assistant-ui] { display: none }"})))"""

_SHOW_COLUMNS = """columns => {
    const key = Object.keys(localStorage).find(key => key.includes("ExperimentPage-"));
    const state = JSON.parse(localStorage.getItem(key));
    localStorage.setItem(key, JSON.stringify({...state, selectedColumns: columns}));
}"""


def take(page: Page, name: str) -> None:
    """Save in 256 colors, a third of the size."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(_SETTLE_MS)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


def make_runs(directory: Path) -> str:
    """Train and package in `directory`; returns the address of the runs in MLflow."""
    for flags in TRAININGS:
        done = train("--recipe", "mnist-quick", "--dataset", "mnist", *flags.split(), cwd=directory)
        result(done)
    result(run([sys.executable, "-m", "serve.package"], directory))
    return re.findall(r"see: +mlflow ui, then (\S+)", done.stdout)[0]


def drawing(directory: Path) -> None:
    with running_demo(directory) as demo, opened_page(demo.url, 1280, 780) as page:
        draw(page, drawn(STROKES["5"], random.Random(3), 1.0))
        page.get_by_text("sure about your drawing").wait_for()
        take(page, "draw.png")


def run_list(pages: Pages, address: str) -> None:
    page = pages.page
    page.set_viewport_size({"width": 1400, "height": 600})
    pages.open_runs(address)
    pages.runs()
    page.evaluate(_SHOW_COLUMNS, COLUMNS)
    page.reload()
    page.get_by_role("button", name="Toggle sidebar").click()
    take(page, "runs.png")


def comparison(pages: Pages, address: str) -> None:
    page = pages.page
    page.set_viewport_size({"width": 1400, "height": 1090})
    pages.open_runs(address, "&compareRunsMode=CHART")
    page.get_by_role("button", name="Toggle sidebar").click()
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
    section = headers.filter(has_text="Model metrics")
    section.get_by_test_id("experiment-view-compare-runs-add-chart").click()
    page.get_by_role("menuitem", name="Difference view").click()
    dialog = page.get_by_role("dialog").last
    dialog.get_by_role("checkbox", name="Parameters").check()
    dialog.get_by_text("Show change from baseline").click()
    dialog.get_by_role("button", name="Add chart").click()
    page.get_by_placeholder("Search metric charts").fill("^val/|difference")
    page.wait_for_timeout(_SETTLE_MS)
    corner = page.get_by_test_id("draggable-card-resize-handle").last
    corner.scroll_into_view_if_needed()
    box = corner.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 660, y, steps=10)
    page.mouse.up()
    take(page, "compare.png")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mlp-screenshots-") as name:
        directory = Path(name)
        address = make_runs(directory)
        drawing(directory)
        with running_ui(directory) as ui, opened(ui.uri) as pages:
            pages.page.add_init_script(_NO_BUTTON)
            run_list(pages, address)
            comparison(pages, address)


if __name__ == "__main__":
    main()
