"""The pages that `make docs` builds: no link is broken, and nothing comes from another host."""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.helpers.launching import ROOT, run

pytestmark = pytest.mark.slow

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
"""Elements with what a browser loads for them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    done = run(words, ROOT, NO_MKDOCS_2_WARNING="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return directory


class Addresses(HTMLParser):
    """What a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get("href") or "")
        elif tag in LOADED:
            self.found.append(values.get(LOADED[tag]) or "")


def loaded_by(site: Path) -> Iterator[tuple[str, str]]:
    for page in site.rglob("*.html"):
        parser = Addresses()
        parser.feed(page.read_text())
        yield from ((page.name, address) for address in parser.found)
    for sheet in site.rglob("*.css"):
        yield from (
            (sheet.name, url) for url in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", sheet.read_text())
        )


def test_every_page_is_there(site: Path) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {path for entry in nav for path in entry.values()}
    assert pages == {page.name for page in (ROOT / "docs").glob("*.md")}
    for page in pages:
        assert (site / page).with_suffix(".html").stat().st_size > 5000


def test_nothing_comes_from_another_host(site: Path) -> None:
    addresses = list(loaded_by(site))
    assert len(addresses) > 50
    assert [each for each in addresses if re.match(r"(https?:)?//", each[1])] == []


def test_the_reference_has_what_docstrings_say(site: Path) -> None:
    text = (site / "api.html").read_text()
    for name in ("load_model", "Bundle.predict_proba", "Client.predict", "TrainConfig", "ImageError"):
        assert re.search(rf'id="[\w.]*\.{name}"', text), name
    assert "not normalized: that is done here" in text
