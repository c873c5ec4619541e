"""Take the screenshots in docs/images: `python tests/helpers/screenshots.py STORE DIRECTORY`.

STORE contains the mlflow.db of some trainings, and model_store/mlp.mar.
"""

import io
import random
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.helpers.draw_page import draw, opened_page, running_demo
from tests.helpers.mlflow_pages import Pages, opened
from tests.helpers.mlflow_servers import running_ui
from tests.helpers.strokes import WAYS, drawn

METRICS = ("best_val_accuracy", "test_accuracy", "test_ece")
PARAMS = ("batch_size", "hidden_sizes", "lr", "optimizer", "seed")
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


def take(page: Page, path: Path) -> None:
    """Save in 256 colors, a third of the size."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(_SETTLE_MS)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def drawing(store: Path, path: Path) -> None:
    with running_demo(store) as demo, opened_page(demo.url) as page:
        draw(page, drawn(WAYS["5"][0], random.Random(3), 448))
        take(page, path)


def run_list(pages: Pages) -> None:
    page = pages.page
    page.set_viewport_size({"width": 1400, "height": 600})
    pages.open_experiment("mlp_dist")
    columns = [*(f"metrics.`{name}`" for name in METRICS), *(f"params.`{name}`" for name in PARAMS)]
    page.evaluate(_SHOW_COLUMNS, columns)
    page.reload()
    page.get_by_role("button", name="Toggle sidebar").click()
    pages.sort_by("best_val_accuracy")


def comparison(pages: Pages) -> None:
    page = pages.page
    page.set_viewport_size({"width": 1400, "height": 1090})
    page.goto(f"{page.url}&compareRunsMode=CHART")
    section = page.get_by_test_id("experiment-view-compare-runs-section-header").filter(
        has_text="Model metrics"
    )
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


def main() -> None:
    store, directory = map(Path, sys.argv[1:])
    directory.mkdir(parents=True, exist_ok=True)
    drawing(store, directory / "draw.png")
    with running_ui(store) as ui, opened(ui.uri) as pages:
        pages.page.add_init_script(_NO_BUTTON)
        run_list(pages)
        take(pages.page, directory / "runs.png")
        comparison(pages)
        take(pages.page, directory / "compare.png")


if __name__ == "__main__":
    main()
