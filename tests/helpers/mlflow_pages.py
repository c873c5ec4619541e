"""MLflow's pages in a headless Chromium."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
_MILLISECONDS = 60_000
"""Time limit for an element to appear."""

# The assistant opens itself at the first visit, after the page has loaded.
_NO_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""

# The document's order of rows is not the list's.
_IN_ORDER = """cells => [...cells]
    .sort((one, other) => Number(one.closest("[row-index]").getAttribute("row-index"))
        - Number(other.closest("[row-index]").getAttribute("row-index")))
    .map(cell => cell.innerText.trim())"""


@contextmanager
def new_page(width: int = 1400, height: int = 850) -> Iterator[Page]:
    """A page of a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(_MILLISECONDS)
        yield page
        browser.close()


@contextmanager
def opened(uri: str) -> Iterator["Pages"]:
    """MLflow at `uri` in a fresh browser without other network access."""
    with new_page() as page:
        page.add_init_script(_NO_ASSISTANT)
        page.route(lambda url: not url.startswith(f"{uri}/"), lambda route: route.abort())
        yield Pages(page, uri)


class Pages:
    def __init__(self, page: Page, uri: str) -> None:
        self.page, self._uri = page, uri

    def open_runs(self, address: str, more: str = "") -> None:
        """Open the list of runs at the address that a training printed, on this server."""
        self.page.goto("about:blank")
        self.page.goto(f"{address.replace('http://127.0.0.1:5000', self._uri)}{more}")
        self.page.get_by_test_id("sort-select-dropdown").wait_for()

    def runs(self) -> list[str]:
        """Names, from the top of the list."""
        names = self.page.locator("[role=gridcell][col-id='attributes.`Run Name`'] a")
        names.first.wait_for()
        return [str(name) for name in names.evaluate_all(_IN_ORDER)]

    def chart_sections(self) -> list[str]:
        """Headings, from the top."""
        headers = self.page.get_by_test_id("experiment-view-compare-runs-section-header")
        headers.first.wait_for()
        return [text.partition("\n")[0] for text in headers.all_inner_texts()]

    def compare(self, runs: Sequence[str]) -> dict[str, list[str]]:
        """Select the runs in the list and compare them; returns differing params and their values."""
        for name in runs:
            link = self.page.get_by_role("link", name=name, exact=True)
            row = self.page.get_by_role("row").filter(has=link)
            row.get_by_role("checkbox", name="Press Space to toggle row selection").check()
        self.page.get_by_role("button", name="Compare", exact=True).click()
        self.page.get_by_role("switch", name="Parameters - Show diff only").click()
        table = self.page.locator("table").filter(has=self.page.get_by_text("hidden_sizes", exact=True))
        rows = table.locator("tr").evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => cell.innerText.replace(/\\s/g, '')))"
        )
        return {name: values for name, *values in rows}
