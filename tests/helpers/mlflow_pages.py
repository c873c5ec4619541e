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

    def open_experiment(self, name: str) -> None:
        self.page.goto(f"{self._uri}/#/experiments")
        # MLflow opens in its GenAI view.
        self.page.get_by_text("Model training", exact=True).click()
        self.page.get_by_role("link", name=name, exact=True).first.click()
        self.page.get_by_test_id("sort-select-dropdown").wait_for()

    def sort_by(self, metric: str) -> None:
        """Sort, highest first, and wait for the list."""
        self.page.get_by_test_id("sort-select-dropdown").click()
        self.page.get_by_test_id(f"sort-select-{metric}").click()
        self.page.keyboard.press("Escape")
        self.page.wait_for_function(
            f"""column => {{
                const values = ({_IN_ORDER})(document.querySelectorAll(column)).map(Number);
                return values.length && values.every((value, i) => !i || value <= values[i - 1]);
            }}""",
            arg=f"[role=gridcell][col-id='metrics.`{metric}`']",
        )

    def runs(self) -> list[str]:
        """Names, from the top of the list."""
        names = self.page.locator("[role=gridcell][col-id='attributes.`Run Name`'] a")
        return [str(name) for name in names.evaluate_all(_IN_ORDER)]

    def select(self, runs: Sequence[str]) -> None:
        for name in runs:
            row = self.page.get_by_role("row").filter(
                has=self.page.get_by_role("link", name=name, exact=True)
            )
            row.get_by_role("checkbox", name="Press Space to toggle row selection").check()

    def compare(self) -> None:
        """Open the comparison of the selected runs."""
        self.page.get_by_role("button", name="Compare", exact=True).click()
        self.page.get_by_role("switch", name="Parameters - Show diff only").click()

    def differences(self) -> dict[str, list[str]]:
        """Differing params and their values."""
        table = self.page.locator("table").filter(has=self.page.get_by_text("layer_sizes", exact=True))
        rows = table.locator("tr").evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => cell.innerText.replace(/\\s/g, '')))"
        )
        return {name: values for name, *values in rows}
