"""`make docs` builds every page without broken links."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.launching import ROOT, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    done = run(words, ROOT, NO_MKDOCS_2_WARNING="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return directory


def test_every_page_is_built(site: Path) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {path for entry in nav for path in entry.values()}
    assert pages == {page.name for page in (ROOT / "docs").glob("*.md")}
    for page in pages:
        assert (site / page).with_suffix(".html").stat().st_size > 5000


def test_api_page_has_the_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text()
    for name in ("load_model", "Bundle.predict_proba", "Client.predict", "TrainConfig", "ImageError"):
        assert re.search(rf'id="[\w.]*\.{name}"', text), name
