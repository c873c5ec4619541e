"""The commands on the pages run as they are, in a copy of the checkout.

Only blocks marked `bash` are run. Commands that need a name or a file of the user's are in unmarked blocks.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.helpers.checkouts import copy_checkout
from tests.helpers.default_ports import alone
from tests.helpers.launching import BIN, ROOT, environment

NOT_RUN = {
    "make ": "creates an environment, or runs all tests",
    "python launch/sweep.py": "takes minutes; tests/sweep runs shorter ones",
    "mlflow ui": "runs until Ctrl-C; test_browser.py opens its pages",
}
"""Beginnings of lines that are left out, with the reason."""


def commands(page: str) -> list[str]:
    """The page's blocks without the lines of NOT_RUN."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    kept = [[line for line in block.splitlines() if not line.startswith(tuple(NOT_RUN))] for block in blocks]
    return ["\n".join(lines) for lines in kept if lines]


# test_extending.py runs the page that changes the checkout.
PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.name != "extending.md")


@pytest.fixture
def checkout(tmp_path: Path, empty_store: Path) -> Iterator[Path]:
    """A copy whose .venv is this environment."""
    directory = copy_checkout(tmp_path / "checkout")
    shutil.copy(empty_store, directory)
    activate = directory / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    python = activate.with_name("python")
    python.write_text(f'#!/bin/sh\nexec {BIN}/python "$@"\n')
    python.chmod(0o755)
    activate.write_text(
        f"export VIRTUAL_ENV={directory}/.venv PATH={BIN}:$PATH\n. {directory}/launch/environment.sh\n"
    )
    yield directory
    run_commands(directory, "torchserve --stop; python -m serve.server stop", check=False)


def run_commands(directory: Path, text: str, *, check: bool = True) -> None:
    """Run commands in a new shell with the environment active."""
    env = environment(TEMP=str(directory.parent))
    env["VIRTUAL_ENV"] = str(BIN.parent)
    if "MLP_DIST_DATA" in os.environ:
        env["MLP_DIST_DATA"] = str(Path(os.environ["MLP_DIST_DATA"]).resolve())
    # Servers that keep running would keep a pipe open.
    output = directory.parent / "output"
    with output.open("w") as file:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", f"source .venv/bin/activate\n{text}"],
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
    assert not check or done.returncode == 0, f"{text}\n{output.read_text()}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param("README.md", marks=pytest.mark.slow),
        *(pytest.param(page, marks=pytest.mark.nightly) for page in PAGES if commands(page)),
    ],
)
def test_commands_run(page: str, checkout: Path) -> None:
    if page not in ("README.md", "docs/index.md"):
        run_commands(checkout, "accelerate launch launch/train.py --dataset digits --epochs 1")
    for block in commands(page):
        # The default recipe takes a minute on a quiet machine.
        block = re.sub(r"(launch/train\.py|mlp_dist\.train)$", r"\1 --recipe mnist-quick", block, flags=re.M)
        # `torchserve --start` returns before it listens; other servers must not take its ports meanwhile.
        with alone() if "torchserve --start" in block else nullcontext():
            run_commands(checkout, block)


def test_every_exception_is_on_a_page() -> None:
    lines = "".join((ROOT / page).read_text() for page in ("README.md", *PAGES)).splitlines()
    for beginning in NOT_RUN:
        assert any(line.startswith(beginning) for line in lines), beginning
