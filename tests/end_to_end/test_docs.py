"""`make docs` builds every page without broken links, and nothing on the pages comes from another host."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.helpers.launching import ROOT, run

pytestmark = pytest.mark.slow

LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
"""Elements that a browser loads something for, with the attribute."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    done = run(words, ROOT, NO_MKDOCS_2_WARNING="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return directory


class LoadedAddresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get(LOADED[tag]) or "")


def test_every_page_is_built(site: Path) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {path for entry in nav for path in entry.values()}
    assert pages == {page.name for page in (ROOT / "docs").glob("*.md")}
    for page in pages:
        assert (site / page).with_suffix(".html").stat().st_size > 5000


def test_nothing_comes_from_another_host(site: Path) -> None:
    addresses = []
    for page in site.rglob("*.html"):
        parser = LoadedAddresses()
        parser.feed(page.read_text())
        addresses += parser.found
    for sheet in site.rglob("*.css"):
        addresses += re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", sheet.read_text())
    assert len(addresses) > 50
    assert [address for address in addresses if re.match(r"(https?:)?//", address)] == []


def test_api_page_has_the_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text()
    for name in ("load_model", "Bundle.predict_proba", "Client.predict", "TrainConfig", "ImageError"):
        assert re.search(rf'id="[\w.]*\.{name}"', text), name
