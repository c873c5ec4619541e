"""The commands of README and docs, typed as they stand in a copy of the checkout.

Blocks marked `bash` are those that run as they stand; what needs a name or a file of one's own is in plain
blocks, and those that are not run here are listed with the reason.
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NOT_RUN = {
    "make ": "makes an environment, or runs all tests; CI calls it",
    "for seed in": "half a minute of trainings that differ in their seed",
    "python launch/sweep.py": "two minutes; tests/test_sweep_command.py types shorter ones",
    "mlflow ui": "runs until Ctrl-C; tests/test_browser.py opens its pages",
}
"""Lines that begin so."""

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(page: str) -> list[list[str]]:
    """The lines of each."""
    found = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [block.splitlines() for block in found]


def run_of(page: str) -> list[str]:
    """What is run of a page's blocks, in order."""
    kept = [[line for line in block if not line.startswith(tuple(NOT_RUN))] for block in blocks(page)]
    return ["\n".join(lines) for lines in kept if lines]


# tests/test_extending.py runs the page that changes the checkout.
RUN = [page for page in PAGES if run_of(page) and page != "docs/extending.md"]


@pytest.fixture
def checkout(tmp_path: Path, empty_store: Path) -> Iterator[Path]:
    """With an environment that is this one."""
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
    type_(directory, "torchserve --stop; python -m serve.server stop", check=False)


def type_(directory: Path, text: str, *, check: bool = True) -> None:
    """Commands in a shell of their own, in which the environment is active."""
    env = environment(TEMP=str(directory.parent))
    env["VIRTUAL_ENV"] = str(BIN.parent)
    if "MLP_DIST_DATA" in os.environ:
        env["MLP_DIST_DATA"] = str(Path(os.environ["MLP_DIST_DATA"]).resolve())
    # A file, since servers that go on running would keep a pipe open.
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


@pytest.mark.parametrize("page", RUN)
def test_each_command_runs_as_it_stands(page: str, checkout: Path) -> None:
    if page not in ("README.md", "docs/index.md"):
        type_(checkout, "accelerate launch launch/train.py --dataset digits --epochs 1")
    for block in run_of(page):
        # It returns before it listens, and the next command would take its ports.
        with alone() if "torchserve --start" in block else nullcontext():
            type_(checkout, block)


def test_nothing_is_left_out_that_is_not_there() -> None:
    lines = [line for page in PAGES for block in blocks(page) for line in block]
    for beginning in NOT_RUN:
        assert any(line.startswith(beginning) for line in lines), beginning
    assert {"README.md", "docs/index.md", "docs/training.md", "docs/recipes.md", "docs/data.md"} <= set(RUN)
