"""The page of serve.draw in a headless Chromium, drawn on with the mouse."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
def opened_page(url: str, width: int = 390, height: int = 844) -> Iterator[Page]:
    """The loaded page. It may send requests only to its own server."""
    urls: list[str] = []
    with new_page(width, height) as page:
        page.on("request", lambda request: urls.append(request.url))
        page.goto(url)
        page.get_by_label("Brush Size").wait_for()
        yield page
    assert urls
    assert [other for other in urls if not other.startswith((f"{url}/", "data:", "blob:"))] == []


def draw(page: Page, strokes: Sequence[Sequence[Point]]) -> None:
    """Draw strokes, in fractions of the paper, which is in the middle of the pad."""
    box = page.locator("#pad canvas").first.bounding_box()
    assert box is not None
    side = 0.8 * min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    for stroke in strokes:
        # Each move takes Chromium without a GPU 0.2 s or more.
        for number, (x, y) in enumerate([*stroke[:-1:3], stroke[-1]]):
            page.mouse.move(left + side * x, top + side * y)
            if number == 0:
                page.mouse.down()
        with page.expect_request(lambda request: "/queue/join" in request.url):
            page.mouse.up()


def clear(page: Page) -> None:
    page.get_by_role("button", name="Clear canvas").click()
    page.get_by_test_id("label-output-value").wait_for(state="detached")
    page.get_by_text("select the draw tool to start").wait_for(state="detached")
