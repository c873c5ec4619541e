"""The page of serve.draw in a headless Chromium, drawn on with the mouse."""

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

from tests.helpers.launching import environment
from tests.helpers.mlflow_pages import new_page
from tests.helpers.strokes import Point

_SECONDS = 60


@dataclass
class Demo:
    """A running serve.draw: the lines it printed, and the page's URL."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def wait(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            found = re.fullmatch(r"draw a digit at (\S+) \(stop with Ctrl-C\)", self.lines[-1])
            if found:
                self.url = found[1]
                return
        pytest.fail("\n".join(self.lines))

    def interrupt(self) -> None:
        """Press Ctrl-C and wait for the end."""
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=_SECONDS)


@contextmanager
def running_demo(directory: Path, **changes: str) -> Iterator[Demo]:
    # A background process of a shell inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.draw"],
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
    """The loaded page. It may send requests only to its own server."""
    urls: list[str] = []
    with new_page(1100, 930) as page:
        page.on("request", lambda request: urls.append(request.url))
        page.goto(url)
        page.locator("#pad canvas").wait_for()
        page.locator("#file input[type=file]").wait_for(state="attached")
        yield page
    assert urls
    assert [other for other in urls if not other.startswith((f"{url}/", "data:", "blob:"))] == []


def draw(page: Page, strokes: list[list[Point]]) -> str:
    """Draw strokes, in pixels of the pad; returns the label of the last stroke's answer."""
    box = page.locator("#pad canvas").bounding_box()
    assert box is not None
    for stroke in strokes:
        with page.expect_response(lambda response: response.url.endswith("/run/predict")) as response:
            for number, (x, y) in enumerate(stroke):
                page.mouse.move(box["x"] + x, box["y"] + y)
                if number == 0:
                    page.mouse.down()
            page.mouse.up()
    [html] = response.value.json()["data"]
    label: str = html.partition('data-label="')[2].partition('"')[0]
    assert label, html
    page.locator(f"#answer [data-label='{label}']").wait_for()
    return label


def clear(page: Page) -> None:
    page.locator("#pad .clear").click()
    page.locator("#answer .waiting").wait_for()
