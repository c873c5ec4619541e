"""launch/draw.py, and its page in a headless Chromium: drawn on with the mouse, as people do."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.helpers.launching import ROOT, environment
from tests.helpers.mlflow_pages import new_page
from tests.helpers.strokes import Point

SCRIPT = str(ROOT / "launch/draw.py")
_SECONDS = 60


@dataclass
class Demo:
    """The page that launch/draw.py serves at `url`, and what it said before."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    url: str = ""

    def wait(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.strip())
            found = re.fullmatch(r"draw a digit at (\S+) \(Ctrl-C ends it\)", self.said[-1])
            if found:
                self.url = found[1]
                return
        pytest.fail("\n".join(self.said))

    def interrupt(self) -> list[str]:
        """As Ctrl-C does; returns what it still said."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=_SECONDS)
        return rest.split("\n")


@contextmanager
def running_demo(directory: Path, **changes: str) -> Iterator[Demo]:
    # What a shell starts in the background ignores Ctrl-C, and so does all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, SCRIPT],
            cwd=directory,
            env=environment(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    demo = Demo(process)
    try:
        demo.wait()
        yield demo
    finally:
        if process.poll() is None:
            demo.interrupt()


@contextmanager
def opened_page(url: str) -> Iterator[Page]:
    """The page, once it can be drawn on. It asks its own server alone."""
    asked: list[str] = []
    with new_page(1100, 930) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.locator("#pad canvas").wait_for()
        page.locator("#file input[type=file]").wait_for(state="attached")
        yield page
    assert asked
    assert [other for other in asked if not other.startswith((f"{url}/", "data:", "blob:"))] == []


def draw(page: Page, strokes: list[list[Point]]) -> str:
    """The label of the answer to the last stroke, once the page shows it; in pixels of the pad."""
    box = page.locator("#pad canvas").bounding_box()
    assert box is not None
    for stroke in strokes:
        with page.expect_response(lambda response: response.url.endswith("/run/predict")) as answered:
            for number, (x, y) in enumerate(stroke):
                page.mouse.move(box["x"] + x, box["y"] + y)
                if number == 0:
                    page.mouse.down()
            page.mouse.up()
    [html] = answered.value.json()["data"]
    label: str = html.partition('data-label="')[2].partition('"')[0]
    assert label, html
    page.locator(f"#answer [data-label='{label}']").wait_for()
    return label


def clear(page: Page) -> None:
    page.locator("#pad .clear").click()
    page.locator("#answer .waiting").wait_for()
